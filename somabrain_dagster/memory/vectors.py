"""Vectors that callers bring along: checked, of unit length, and in the form that Postgres reads."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


class InvalidEmbedding(ValueError):
    """A vector that cannot be compared with the others; the message says why."""


def unit_vector(values: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """A caller's vector at unit length, shape (dimension,).

    Raises:
        InvalidEmbedding: it is not a list of that many finite numbers, or all of them are zero.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidEmbedding(f"`embedding` must be a list of {dimension} numbers: {error}") from error
    if vector.shape != (dimension,):
        shape = " × ".join(map(str, vector.shape)) or "no"
        raise InvalidEmbedding(
            f"`embedding` has {shape} numbers where the model makes {dimension}: embed with that model"
        )
    if not np.isfinite(vector).all():
        raise InvalidEmbedding("`embedding` has a component that is NaN or infinite: check what made it")
    largest = np.abs(vector).max()
    if largest == 0:
        raise InvalidEmbedding("`embedding` is all zeros, which has no direction: check what made it")
    scaled = vector / largest  # so that no square overflows or vanishes
    return np.asarray(scaled / np.linalg.norm(scaled), dtype=np.float32)


def as_text(vector: NDArray[np.float32]) -> str:
    """A vector as Postgres reads it, exact to the last bit of float32."""
    return "[" + ",".join(map(str, vector.tolist())) + "]"
