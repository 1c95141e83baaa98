"""What is to be remembered: a memory, with its own vector and its own key if the caller has them."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from somabrain_dagster.memory.embedding import spoken
from somabrain_dagster.memory.vectors import InvalidEmbedding, unit_vector
from somabrain_dagster.store.memories import InvalidMemory, Memory, check_memory

_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00\ud800-\udfff]*\Z")]


class NewMemory(Memory, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A memory as it is offered.

    Attributes:
        embedding: its own vector, by the model of the embedder in use; else the text is embedded here.
        key: makes a retry safe: the same key stands for the same memory for ever.
    """

    embedding: tuple[float, ...] | None = None
    key: _Key | None = None


def embedded_text(speaker: str | None, text: str) -> str:
    """A memory as it is embedded: who says it is part of what it means, where that is known."""
    return text if speaker is None else spoken(speaker, text)


def checked(memories: Sequence[Memory], dimension: int) -> list[NDArray[np.float32] | None]:
    """Check memories that were made in Python, where nothing has checked their fields yet.

    Args:
        memories: to be remembered.
        dimension: of their own vectors.

    Returns:
        Each one's own vector at unit length, None where it brings none.

    Raises:
        InvalidMemory: a field of a memory cannot be; the message names the memory by its position.
        InvalidEmbedding: a memory's own vector cannot be compared; as above.
    """
    vectors: list[NDArray[np.float32] | None] = []
    for position, memory in enumerate(memories):
        fields = {name: getattr(memory, name) for name in memory.__struct_fields__}
        own = fields.get("embedding")
        try:
            msgspec.convert({**fields, **({"embedding": None} if own is not None else {})}, type=type(memory))
            check_memory(memory)
            vectors.append(None if own is None else unit_vector(own, dimension))
        except (msgspec.ValidationError, InvalidMemory) as error:
            raise InvalidMemory(f"memory {position}: {error}") from error
        except InvalidEmbedding as error:
            raise InvalidEmbedding(f"memory {position}: {error}") from error
    return vectors
