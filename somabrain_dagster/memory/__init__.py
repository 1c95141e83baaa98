"""Remember, link, recall, working memory, embeddings."""
