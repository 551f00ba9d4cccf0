"""Every error that this package raises on purpose.

::

    MeshError
    ├── ConfigError            (ValueError)   an option is wrong; the text says what to change
    ├── StartError             (RuntimeError) a port is taken, a server cannot be reached at start
    ├── EmitterError           (RuntimeError) an emitter takes nothing: it is closed, or what waits for a node fills it
    ├── PayloadError           (ValueError)   what was emitted cannot be sent
    │   ├── PayloadTooLarge                   larger than `buffered_amount_threshold`
    │   └── PayloadNotEncodable               no codec has a form for it
    └── RemoteError                           *they* erred; ends that connection and nothing else
        ├── WebSocketError                    broke RFC 6455 or a limit of ours; holds a close code
        ├── FrameError                        a link frame is malformed or out of place
        ├── MessageError                      a cluster message is malformed; the link goes on
        ├── HandshakeError                    refused us, or was refused; holds a `Refusal` code
        └── DialError                         could not be reached, or did not upgrade
            └── ExhaustedError                not their fault: this process has no descriptor left

Any other exception that leaves this package is a bug in it.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DialError",
    "EmitterError",
    "ExhaustedError",
    "FrameError",
    "HandshakeError",
    "MeshError",
    "MessageError",
    "PayloadError",
    "PayloadNotEncodable",
    "PayloadTooLarge",
    "RemoteError",
    "StartError",
    "WebSocketError",
]


class MeshError(Exception):
    """The root of all errors of this package."""


class ConfigError(MeshError, ValueError):
    """An option, or a combination of options, makes no sense."""


class StartError(MeshError, RuntimeError):
    """Something outside of the program kept a part of it from starting."""


class EmitterError(MeshError, RuntimeError):
    """An emitter could not take a message. It was delivered to nobody."""


class PayloadError(MeshError, ValueError):
    """An event cannot be sent. It was delivered to nobody."""


class PayloadTooLarge(PayloadError):
    """An encoded event is larger than a peer's outbox may ever become."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"the encoded event has {self.size_bytes} bytes, more than the limit of {self.limit_bytes}; "
            "send it in pieces or raise buffered_amount_threshold on every node"
        )


class PayloadNotEncodable(PayloadError):
    """An event holds a value that neither the server's packet class nor msgpack has a form for."""


class RemoteError(MeshError):
    """The other side broke a rule. Only its own connection ends."""


class WebSocketError(RemoteError):
    """A WebSocket frame broke RFC 6455 or one of our limits.

    Attributes:
        code: the RFC 6455 close code to answer with (section 7.4.1).
        reason: a short text for the close frame.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (close code {self.code})"


class FrameError(RemoteError):
    """A link frame is malformed, or came where it may not."""


class MessageError(RemoteError):
    """A cluster message is malformed. It is dropped and counted; its link goes on."""


class HandshakeError(RemoteError):
    """A handshake failed.

    Attributes:
        code: one of `gevent_mesh.protocol.frames.Refusal`.
        reason: what happened, for people.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DialError(RemoteError):
    """The other side could not be reached or did not upgrade to WebSocket."""


class ExhaustedError(DialError):
    """This process has no descriptor for another connection. That says nothing about the other side."""
