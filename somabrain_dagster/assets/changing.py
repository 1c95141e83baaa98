"""What a run may do besides looking: a person who materialises means it, a sensor may not be allowed to."""

import dagster as dg


class Change(dg.Config):
    """Whether this run may begin a trial, promote, or carry out a fit. What does harm is ended anyway."""

    change: bool = True
