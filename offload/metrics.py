"""Every metric of the proxy.

Workers count in plain integers (`WorkerMetrics`); the supervisor adds their snapshots up and
exports them (`offload.admin`).
"""

from __future__ import annotations

from hsm.metrics import CLIENT_SPECS, SIGNATURE_FAILURES, Histogram, MetricStore, Spec, Value
from hsm.signing import SCHEMES

CONNECTIONS = Spec(
    "offload_connections_total",
    "counter",
    "Client connections that ended, by how.",
    ("listener", "outcome"),
    values={
        "outcome": (
            "relayed",
            "served",
            "bad_request",
            "refused",
            "probe",
            "handshake_failed",
            "upstream_failed",
            "upstream_full",
            "client_reset",
            "truncated",
            "client_bad_record",
            "upstream_reset",
            "half_close_timeout",
            "idle_timeout",
            "drain_timeout",
            "closed",
            "internal_error",
        )
    },
)
ACTIVE = Spec("offload_connections_active", "gauge", "Open client connections.", ("listener",))
HANDSHAKE_SECONDS = Spec(
    "offload_handshake_seconds",
    "histogram",
    "Time from a ClientHello's first byte to the end of its handshake.",
    ("listener", "kind"),
    values={"kind": ("full", "resumed")},
)
STAGE_SECONDS = Spec(
    "offload_handshake_stage_seconds",
    "histogram",
    "Where a handshake's time goes: client_hello (accept to its first byte), signature "
    "(asked for to verified), finish (signature to the client's Finished).",
    ("stage",),
    values={"stage": ("client_hello", "signature", "finish")},
)
RESUMPTIONS = Spec(
    "offload_resumptions_total",
    "counter",
    "Handshakes that resumed a session, by the age of the key that its ticket was made with: so many rotations "
    "(tickets.rotate) ago it was the current one.",
    ("listener", "rotations"),
)
HANDSHAKE_FAILURES = Spec(
    "offload_handshake_failures_total",
    "counter",
    "Handshakes that failed, by reason.",
    ("reason",),
    values={
        "reason": (
            "peer_left",
            "not_tls",
            "timeout",
            "too_many_bytes",
            "overloaded",
            "unsupported_scheme",
            "unknown_name",
            "rsa_key_exchange",
            "client_certificate_missing",
            "client_certificate_untrusted",
            "client_certificate_expired",
            "client_certificate_not_yet_valid",
            "client_certificate_purpose",
            "client_certificate_not_allowed",
            "client_certificate_invalid",
            "protocol",
            "peer_alert",
            "io",
            "internal",
            *(f"signature_{reason}" for reason in SIGNATURE_FAILURES),
        )
    },
)
SIGNATURE_SECONDS = Spec(
    "offload_signature_seconds",
    "histogram",
    "Time a worker waited for a signature, queue and retries and verification included.",
    ("node", "scheme"),
    values={"scheme": tuple(SCHEMES)},
)
RELAY_BYTES = Spec(
    "offload_relay_bytes_total",
    "counter",
    "Plaintext bytes relayed.",
    ("direction",),
    values={"direction": ("to_upstream", "to_client")},
)
UPSTREAM_CONNECT_SECONDS = Spec(
    "offload_upstream_connect_seconds",
    "histogram",
    "Time to connect to a server of an upstream group, as configured.",
    ("upstream", "server"),
)
UPSTREAM_FAILURES = Spec(
    "offload_upstream_failures_total",
    "counter",
    "Connections to a server, as configured, that failed.",
    ("upstream", "server", "reason"),
    values={"reason": ("refused", "timeout", "unreachable", "exhausted", "error")},
)
REFUSED = Spec(
    "offload_refused_total",
    "counter",
    "Connections refused before any TLS: address_connections and address_rate are limits, proxy_untrusted "
    "came from no load balancer, proxy_header had no good PROXY header.",
    ("listener", "reason"),
    values={"reason": ("address_connections", "address_rate", "proxy_untrusted", "proxy_header")},
)
UPSTREAM_CONNECTIONS = Spec(
    "offload_upstream_connections",
    "gauge",
    "Connections to an upstream server, open or being opened.",
    ("upstream", "server"),
)
UPSTREAM_UP = Spec(
    "offload_upstream_up",
    "gauge",
    "1 while clients are sent to the server: its checks succeed, and some worker can connect to it.",
    ("upstream", "server"),
)
ACCEPT_PAUSES = Spec(
    "offload_accept_pauses_total",
    "counter",
    "Times that accepting was suspended, by reason.",
    ("reason",),
    values={"reason": ("max_connections", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")},
)
LOG_LINES_LOST = Spec(
    "offload_log_lines_lost_total",
    "counter",
    "Log lines of workers that could not be written: the log's reader is too slow, or the disk is full.",
)
HTTP_REASONS = (
    "malformed", "version", "method", "host", "target", "content_length", "transfer_encoding", "expectation",
    "request_line", "head_size", "too_many_headers", "chunk", "chunk_extensions", "body_size", "trailers",
    "request_timeout", "upstream_failed", "upstream_full", "upstream_reset", "interim_responses", "upgrade",
    "response_timeout", "aborted", "client_slow", "no_route", "ambiguous_path", "misdirected",
)  # fmt: skip
"""Every `reason` of offload.http.errors.HttpError; aborted: the connection ended before the response;
client_slow: because the client took too little of it."""
HTTP_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
HTTP_REQUESTS = Spec(
    "offload_http_requests_total",
    "counter",
    "HTTP requests that are over. The code is 000 if no response was begun; the route is - if none was found.",
    ("listener", "route", "method", "code"),
    values={"method": HTTP_METHODS},
)
HTTP_SECONDS = Spec(
    "offload_http_request_seconds",
    "histogram",
    "Time from a request's first byte until the client has taken all of its response.",
    ("listener", "route"),
)
HTTP_UPSTREAM_SECONDS = Spec(
    "offload_http_upstream_seconds",
    "histogram",
    "Time from the web server being connected and asked to the first byte of its response.",
    ("route",),
)
HTTP_BYTES = Spec(
    "offload_http_bytes_total",
    "counter",
    "Bytes of HTTP requests (from_client) and responses (to_client), heads included.",
    ("listener", "direction"),
    values={"direction": ("from_client", "to_client")},
)
HTTP_ERRORS = Spec(
    "offload_http_errors_total",
    "counter",
    "HTTP requests that the proxy answered with an error of its own, or broke off, by reason.",
    ("listener", "reason"),
    values={"reason": HTTP_REASONS},
)
INTERNAL_ERRORS = Spec(
    "offload_internal_errors_total", "counter", "Connections ended by an unexpected exception: a bug."
)
WORKER_SPECS = (
    CONNECTIONS, ACTIVE, HANDSHAKE_SECONDS, RESUMPTIONS, STAGE_SECONDS, HANDSHAKE_FAILURES, SIGNATURE_SECONDS,
    RELAY_BYTES, UPSTREAM_CONNECT_SECONDS, UPSTREAM_FAILURES, REFUSED, ACCEPT_PAUSES, LOG_LINES_LOST, INTERNAL_ERRORS,
    HTTP_REQUESTS, HTTP_SECONDS, HTTP_UPSTREAM_SECONDS, HTTP_BYTES, HTTP_ERRORS,
    *CLIENT_SPECS,
)  # fmt: skip
"""Counted in workers, added up by the supervisor."""

CERTIFICATE_NOT_AFTER = Spec(
    "offload_certificate_not_after_seconds",
    "gauge",
    "When a certificate expires, as a Unix time.",
    ("listener", "subject", "ski"),
)
BUILD_INFO = Spec(
    "offload_build_info",
    "gauge",
    "Always 1; the labels tell versions.",
    ("version", "s2n", "fips"),
    values={"fips": ("true", "false")},
)
WORKERS = Spec(
    "offload_workers", "gauge", "Workers by state.", ("state",), values={"state": ("accepting", "absent")}
)
RESTARTS = Spec(
    "offload_restarts_total",
    "counter",
    "Children started again after they ended.",
    ("kind", "name"),
    values={"kind": ("worker", "node")},
)
RELOADS = Spec(
    "offload_reloads_total",
    "counter",
    "Times that the configuration was read again.",
    ("result",),
    values={"result": ("done", "unchanged", "refused")},
)
KEYS_MISSING = Spec(
    "offload_certificate_key_missing", "gauge", "1 while no ready node holds the certificate's key.", ("ski",)
)
DEGRADED = Spec(
    "offload_degraded",
    "gauge",
    "1 while some node is not ready, some key is on no ready node, some certificate is not valid now "
    "or some upstream has no server that is up.",
)
TICKET_ROTATIONS = Spec("offload_ticket_rotations_total", "counter", "Changes of the session-ticket keys.")
CPU_SECONDS = Spec("offload_process_cpu_seconds_total", "counter", "CPU time of a process.", ("process",))
RESIDENT_BYTES = Spec("offload_process_resident_memory_bytes", "gauge", "Resident memory.", ("process",))
OPEN_FILES = Spec("offload_process_open_fds", "gauge", "Open file descriptors.", ("process",))
SUPERVISOR_SPECS = (
    CERTIFICATE_NOT_AFTER, BUILD_INFO, WORKERS, RESTARTS, RELOADS, KEYS_MISSING, DEGRADED,
    TICKET_ROTATIONS, UPSTREAM_CONNECTIONS, UPSTREAM_UP, CPU_SECONDS, RESIDENT_BYTES, OPEN_FILES,
)  # fmt: skip
"""What the supervisor itself knows."""


class ListenerMetrics:
    """The hot values of one listener, looked up once."""

    def __init__(self, store: MetricStore, listener: str) -> None:
        self._store = store
        self._listener = listener
        self._outcomes: dict[str, Value] = {}
        self._failures: dict[str, Value] = {}
        self._signatures: dict[tuple[str, str], Histogram] = {}
        self._resumptions: dict[int, Value] = {}
        self.active = store.value(ACTIVE, listener)
        self.full = store.histogram(HANDSHAKE_SECONDS, listener, "full")
        self.resumed = store.histogram(HANDSHAKE_SECONDS, listener, "resumed")
        self.stage_client_hello = store.histogram(STAGE_SECONDS, "client_hello")
        self.stage_signature = store.histogram(STAGE_SECONDS, "signature")
        self.stage_finish = store.histogram(STAGE_SECONDS, "finish")
        self.to_upstream = store.value(RELAY_BYTES, "to_upstream")
        self.to_client = store.value(RELAY_BYTES, "to_client")

    def ended(self, outcome: str) -> None:
        """Count a connection's end."""
        value = self._outcomes.get(outcome)
        if value is None:
            value = self._outcomes[outcome] = self._store.value(CONNECTIONS, self._listener, outcome)
        value.value += 1
        self.active.value -= 1

    def handshake_failed(self, reason: str) -> None:
        """Count a failed handshake."""
        value = self._failures.get(reason)
        if value is None:
            value = self._failures[reason] = self._store.value(HANDSHAKE_FAILURES, reason)
        value.value += 1

    def resumed_after(self, rotations: int) -> None:
        """Count a resumption by a ticket whose key was the current one so many rotations ago."""
        value = self._resumptions.get(rotations)
        if value is None:
            value = self._store.value(RESUMPTIONS, self._listener, str(rotations))
            self._resumptions[rotations] = value
        value.value += 1

    def refused(self, reason: str) -> None:
        """Count a connection that was not let in."""
        self._store.value(REFUSED, self._listener, reason).value += 1

    def signed(self, node: str, scheme: str, seconds: float) -> None:
        """Observe a signature's wait."""
        histogram = self._signatures.get((node, scheme))
        if histogram is None:
            histogram = self._store.histogram(SIGNATURE_SECONDS, node, scheme)
            self._signatures[node, scheme] = histogram
        histogram.observe(seconds)
        self.stage_signature.observe(seconds)
