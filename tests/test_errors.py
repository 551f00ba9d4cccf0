"""Errors: the tree, their data, their texts."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from gevent_mesh import errors
from gevent_mesh.errors import (
    ConfigError,
    DialError,
    FrameError,
    HandshakeError,
    MeshError,
    MessageError,
    PayloadError,
    PayloadNotEncodable,
    PayloadTooLarge,
    RemoteError,
    StartError,
    WebSocketError,
)

ALL = [value for value in vars(errors).values() if inspect.isclass(value)]


def test_every_error_is_a_mesh_error_and_public() -> None:
    assert all(issubclass(error, MeshError) for error in ALL)
    assert sorted(error.__name__ for error in ALL) == sorted(errors.__all__)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else ""
    assert drawn.pop("MeshError") == ""
    assert drawn == {error.__name__: error.__bases__[0].__name__ for error in ALL if error is not MeshError}


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigError, ValueError),
        (StartError, RuntimeError),
        (PayloadError, ValueError),
        (PayloadNotEncodable, ValueError),
    ],
)
def test_errors_of_the_caller_are_builtin_ones_too(error: type[MeshError], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


@pytest.mark.parametrize("error", [WebSocketError, FrameError, MessageError, HandshakeError, DialError])
def test_what_they_did_wrong_can_be_caught_as_one(error: type[MeshError]) -> None:
    assert issubclass(error, RemoteError)
    assert not issubclass(error, ValueError | RuntimeError)


def test_a_payload_that_is_too_large_says_what_to_do() -> None:
    error = PayloadTooLarge(20, 10)
    assert (error.size_bytes, error.limit_bytes) == (20, 10)
    assert "20 bytes" in str(error)
    assert "limit of 10" in str(error)
    assert "raise buffered_amount_threshold" in str(error)


def test_errors_hold_their_code() -> None:
    websocket, handshake = WebSocketError(1009, "too big"), HandshakeError(2, "the tokens differ")
    assert (websocket.code, websocket.reason, str(websocket)) == (1009, "too big", "too big (close code 1009)")
    assert (handshake.code, handshake.reason, str(handshake)) == (2, "the tokens differ", "the tokens differ")


@pytest.mark.parametrize("error", [PayloadTooLarge(2, 1), WebSocketError(1002, "x"), HandshakeError(1, "y")])
def test_errors_survive_a_trip_to_another_process(error: MeshError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
