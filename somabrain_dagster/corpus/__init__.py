"""Fine-tuning corpora: examples, redaction, deduplication, split, formats, tokens, as streams."""

from somabrain_dagster.corpus.reading import Corpus, open_corpus

__all__ = ["Corpus", "open_corpus"]
