"""The chat, with a door through which `gevent-mesh demo --check` has a server do things: `python -m ... .chat.check`.

On the namespace `/check`, the event `do` names one of the operations below and its arguments; the answer is
`{"value": ...}` or `{"error": "..."}`. Whoever reaches this door may disconnect anybody, so it is not part of the chat.
All settings come from the environment, see `app.py`.
"""

# Flask-SocketIO's decorators have no types:
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.event import AsyncResult

from .app import serve, socketio

NAMESPACE = "/check"
ANSWER_SECONDS = 5.0


def emit(event: str, data: Any = None, to: Any = None, skip_sid: Any = None) -> None:
    socketio.emit(event, data, to=to, skip_sid=skip_sid, namespace=NAMESPACE)


def emit_bytes(event: str, to: str, size: int) -> None:
    """Bytes within a structure, of a size that a page would not be allowed to send."""
    pattern = bytes(range(256)) * (size // 256 + 1)
    emit(event, {"name": "größe ✓", "parts": [pattern[:size], None, {"empty": b""}]}, to=to)


def emit_numbers(event: str, to: str, count: int) -> None:
    for number in range(count):
        emit(event, number, to=to)


def emit_with_callback(event: str, data: Any, to: str) -> list[Any]:
    """What the client's answer put into the callback."""
    answer = AsyncResult()
    socketio.emit(event, data, to=to, namespace=NAMESPACE, callback=lambda *values: answer.set(list(values)))
    values: list[Any] = answer.get(timeout=ANSWER_SECONDS)
    return values


def call(event: str, data: Any, to: str) -> Any:
    return socketio.call(event, data, to=to, namespace=NAMESPACE, timeout=ANSWER_SECONDS)


def enter_room(sid: str, room: str) -> None:
    socketio.server.enter_room(sid, room, namespace=NAMESPACE)


def leave_room(sid: str, room: str) -> None:
    socketio.server.leave_room(sid, room, namespace=NAMESPACE)


def close_room(room: str) -> None:
    socketio.close_room(room, namespace=NAMESPACE)


def disconnect(sid: str) -> None:
    socketio.server.disconnect(sid, namespace=NAMESPACE)


OPERATIONS: dict[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (
        emit,
        emit_bytes,
        emit_numbers,
        emit_with_callback,
        call,
        enter_room,
        leave_room,
        close_room,
        disconnect,
    )
}


@socketio.on("do", namespace=NAMESPACE)
def do(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": OPERATIONS[operation](**arguments)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the check wants to read it
        return {"error": f"{type(error).__name__}: {error}"}


@socketio.on("connect", namespace=NAMESPACE)
def connect(_auth: object = None) -> None:
    """Accept: Socket.IO refuses namespaces that nobody handles."""


if __name__ == "__main__":
    serve()
