"""Conversations kept and searched by mem0, in an environment that has it.

`python memory_mem0.py given.json vectors.npz` prints JSON: the seconds of each search and of each message
that was added, and which first hits had the text that was right. No language model infers anything, and
vectors are looked up, as everywhere in the comparison.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

os.environ["MEM0_TELEMETRY"] = "False"
os.environ["MEM0_DIR"] = tempfile.mkdtemp()  # its history, in SQLite

import numpy as np
from mem0 import Memory
from mem0.embeddings.base import EmbeddingBase

Action = Literal["add", "search", "update"] | None


class Known(EmbeddingBase):  # type: ignore[misc]
    """The vectors of texts that are known."""

    def __init__(self, texts: Any, vectors: Any) -> None:
        super().__init__()
        # A query comes without the blanks around it.
        self._vectors = {
            text.strip(): vector.tolist() for text, vector in zip(texts.tolist(), vectors, strict=True)
        }

    def embed(self, text: str, memory_action: Action = None) -> list[float]:
        vector: list[float] = self._vectors[text.strip()]
        return vector


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    unused = {"provider": "openai", "config": {"api_key": "none"}}  # made, and never asked
    store = {
        "connection_string": given["url"],
        "collection_name": given["collection"],
        "embedding_model_dims": given["dimension"],
        "hnsw": given["hnsw"],
    }
    memory = Memory.from_config(
        {
            "vector_store": {"provider": "pgvector", "config": store},
            "llm": unused,
            "embedder": unused,
        }
    )
    memory.embedding_model = Known(**np.load(sys.argv[2]))
    added, searched, right = [], [], []
    for user, steps in given["stories"].items():
        for step in steps:
            if step["answer"] is not None:
                began = time.perf_counter()
                hits = memory.search(step["query"], top_k=10, threshold=0.0, filters={"user_id": user})[
                    "results"
                ]
                searched.append(time.perf_counter() - began)
                right.append(bool(hits) and hits[0]["memory"] == step["answer"])
            began = time.perf_counter()
            memory.add([{"role": "user", "content": step["kept"]}], user_id=user, infer=False)
            added.append(time.perf_counter() - began)
    print(json.dumps({"added": added, "searched": searched, "right": right}))


if __name__ == "__main__":
    main()
