"""One log line per connection, when it ends: who, how it spoke TLS, who signed, how long, how it ended.

What a peer chose (its SNI) is bounded and escaped, so that no line can be forged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from hsm.client import SignRequest
from offload.config import LogSettings
from offload.sampling import Sample
from offload.tls import TlsConnection

if TYPE_CHECKING:
    from offload.connection import Session

TEXT_MOST = 255
"""Characters of a text that a peer chose."""
_NOT_PLAIN = re.compile(r"[^!-~]|\\")

_ORDINARY = frozenset(
    {
        "relayed",
        "served",
        "client_reset",
        "truncated",
        "idle_timeout",
        "half_close_timeout",
        "drain_timeout",
        "closed",
    }
)
"""Outcomes that are no failure: the client or a time limit ended what worked."""


def plain(text: str) -> str:
    """At most TEXT_MOST characters, all visible ASCII; any other, and the backslash, as an escape."""
    return _NOT_PLAIN.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", text[:TEXT_MOST])


class ConnectionLog:
    """Decides which connections get a line, and writes it."""

    def __init__(self, settings: LogSettings, log: Callable[..., object]) -> None:
        """`log(event, **fields)` writes a line without waiting."""
        self._log = log
        self._sample = Sample(settings.sample if settings.connections == "all" else 0.0)

    def wants(self, outcome: str) -> bool:
        """Whether a connection that ended like this gets a line: a failure always, else a sample."""
        if outcome not in _ORDINARY:
            return outcome != "probe"
        return self._sample.takes_next()

    def write(self, fields: dict[str, object]) -> None:
        """The line of one connection."""
        self._log("connection", **fields)


class Record:
    """What a connection's line will tell that is not known at its end any more."""

    __slots__ = ("_accepted", "_log", "_request", "_signed", "connected", "done", "reason", "unique_id")

    def __init__(self, log: ConnectionLog | None, accepted: float) -> None:
        """Without a log there will be no line, but others can ask."""
        self._log = log
        self._accepted = accepted
        self._request: SignRequest | None = None
        self._signed = 0.0
        self.done = self.connected = 0.0
        """When the handshake was done and a server connected to (time.monotonic)."""
        self.reason = ""
        """Why the handshake failed."""
        self.unique_id = ""
        """Its name, if a server was told one."""

    def answered(self, request: SignRequest) -> None:
        """The signature is there, or will never be."""
        self._request, self._signed = request, monotonic()

    @property
    def signer(self) -> tuple[str, float | None]:
        """The node that signed for the handshake (empty: none), and milliseconds until it had."""
        request = self._request
        return ("", None) if request is None else (request.node, _milliseconds(request.started, self._signed))

    def end(
        self, outcome: str, listener: str, peer: Any, hello: float, tls: TlsConnection | None,
        session: Session | None,
    ) -> None:  # fmt: skip
        """The connection ends: a line, if it is wanted. What is empty or did not happen is left out."""
        if self._log is None or not self._log.wants(outcome) or (self.reason == "peer_left" and not hello):
            return  # the latter only looked whether the port is open
        now = monotonic()
        fields: dict[str, object] = {
            "listener": listener,
            "peer": _address(peer),
            "outcome": outcome,
            "unique_id": self.unique_id,
            "reason": self.reason,
            "client_hello_ms": _milliseconds(self._accepted, hello),
            **self._handshake(hello, tls),
            "upstream": "" if session is None else session.server,
            "upstream_ms": _milliseconds(self.done, self.connected),
            "total_ms": _milliseconds(self._accepted, now),
        }
        if session is not None and (traffic := session.traffic) is not None:
            fields["bytes_up"], fields["bytes_down"] = traffic
        self._log.write({name: value for name, value in fields.items() if value not in ("", None)})

    def _handshake(self, hello: float, tls: TlsConnection | None) -> dict[str, object]:
        if tls is None:
            return {}
        fields: dict[str, object] = {"sni": plain(tls.server_name)}
        if (request := self._request) is not None:
            fields["scheme"] = request.scheme.name
            fields["node"], fields["signature_ms"] = self.signer
        if self.done:
            fields["handshake_ms"] = _milliseconds(hello, self.done)
            fields["version"], fields["cipher"], fields["group"] = tls.version, tls.cipher, tls.group
            fields["alpn"] = plain(tls.application_protocol)
            fields["resumed"] = tls.resumed
        return fields


def _address(peer: Any) -> str:
    host, port = peer[0], peer[1]
    return plain(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _milliseconds(start: float, end: float) -> float | None:
    return round((end - start) * 1000, 3) if start and end else None
