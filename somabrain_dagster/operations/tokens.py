"""Counting tokens as the embedding model does."""

from collections.abc import Sequence

from somabrain_dagster.memory.embedding import minilm_tokenizer


class MiniLMTokens:
    """The WordPiece tokens of all-MiniLM-L6-v2, without its markers and however long the text is."""

    name = "all-MiniLM-L6-v2"

    def __init__(self) -> None:
        """Load the tokenizer.

        Raises:
            EmbeddingError: its package is missing, or the file is not the pinned one.
        """
        self._tokenizer = minilm_tokenizer()

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has."""
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
