"""What goes over the wire: an answer's head and its body together, and all of it whatever comes next."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.serving.running import Running


@pytest.fixture
def connection(service: Running) -> Iterator[socket.socket]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        yield opened


def asked(path: str, method: str = "GET", *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: somabrain", *headers, "", ""]).encode()


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(separator) and length is not None and len(body) == int(length[1])


def read_to_the_end(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_an_answer_comes_in_one_piece(connection: socket.socket) -> None:
    for _ in range(300):  # in two writes, one of three came apart
        connection.sendall(asked("/healthz"))
        assert is_whole(connection.recv(65536))


def test_an_answer_without_a_body_comes_at_once(connection: socket.socket) -> None:
    connection.sendall(asked("/healthz", "HEAD"))
    assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_requests_that_are_sent_together_are_answered_in_their_order(connection: socket.socket) -> None:
    connection.sendall(asked("/healthz") + asked("/nowhere") + asked("/healthz", "GET", "Connection: close"))
    answers = read_to_the_end(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"404", b"200"]


def test_a_connection_is_answered_before_it_is_closed(connection: socket.socket) -> None:
    connection.sendall(asked("/healthz", "HEAD", "Connection: close"))
    assert read_to_the_end(connection).startswith(b"HTTP/1.1 200 ")


def test_a_long_answer_comes_whole(connection: socket.socket) -> None:
    connection.sendall(asked("/openapi.json", "GET", "Connection: close"))
    assert is_whole(read_to_the_end(connection))
