"""Counts the requests of a listener: each value is looked up once, then added to."""

from __future__ import annotations

from hsm.metrics import MetricStore, Value
from offload import metrics as m

_METHODS = {name.encode(): name for name in m.HTTP_METHODS}
_CODES = range(100, 600)


class HttpMetrics:
    """The values of one listener."""

    def __init__(self, store: MetricStore, listener: str) -> None:
        self._store = store
        self._listener = listener
        self._errors: dict[str, Value] = {}
        self.from_client = store.value(m.HTTP_BYTES, listener, "from_client")
        self.to_client = store.value(m.HTTP_BYTES, listener, "to_client")

    def route(self, label: str) -> RouteMetrics:
        """Those of one of its routes; keep it."""
        return RouteMetrics(self._store, self._listener, label)

    def failed(self, reason: str) -> None:
        """Count a request that we answered with an error, or broke off."""
        value = self._errors.get(reason)
        if value is None:
            value = self._errors[reason] = self._store.value(m.HTTP_ERRORS, self._listener, reason)
        value.value += 1


class RouteMetrics:
    """The values of one route."""

    __slots__ = ("_codes", "_listener", "_seconds", "_store", "label", "upstream_seconds")

    def __init__(self, store: MetricStore, listener: str, label: str) -> None:
        self._store = store
        self._listener = listener
        self._codes: dict[tuple[bytes, int], Value] = {}
        self._seconds = store.histogram(m.HTTP_SECONDS, listener, label)
        self.label = label
        self.upstream_seconds = store.histogram(m.HTTP_UPSTREAM_SECONDS, label)

    def done(self, method: bytes, status: int, seconds: float) -> None:
        """Count a request that is over; status 0 if no response was begun."""
        value = self._codes.get((method, status)) or self._value(method, status)
        value.value += 1
        self._seconds.observe(seconds)

    def count(self, method: bytes, status: int) -> None:
        """The same for one of which nobody knows how long it took."""
        self._value(method, status).value += 1

    def _value(self, method: bytes, status: int) -> Value:
        """Clients choose methods and web servers codes: there are only so many label values all the same."""
        known = _METHODS.get(method)
        code = str(status) if status in _CODES else "000"
        value = self._store.value(m.HTTP_REQUESTS, self._listener, self.label, known or "other", code)
        if known is not None and status in _CODES:
            self._codes[method, status] = value
        return value
