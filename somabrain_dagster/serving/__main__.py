"""`python -m somabrain_dagster.serving`: the service alone, by the settings of the environment."""

import argparse

from somabrain_dagster.serving.run import serve
from somabrain_dagster.settings import Settings

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m somabrain_dagster.serving")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--workers", type=int, default=1)
    serve(Settings(), **vars(parser.parse_args()))
