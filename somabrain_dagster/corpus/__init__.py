"""Fine-tuning corpora: examples, redaction, deduplication, split, formats, tokens, as streams."""
