"""What a proxy of ours counted while it was loaded, and where time went."""

from __future__ import annotations

import http.server
import threading
import time

import pytest

from loadtest.scrape import Metrics, Stage, Total, growth, metrics, parse, stages, told
from loadtest.targets.lab import LoadTestError, free_port
from loadtest.watch import Look, Stretch, Watch, observed

METRICS = """\
# TYPE hsm_client_errors_total counter
hsm_client_errors_total{node="a",reason="timeout"} 3.0
hsm_client_errors_total{node="b",reason="timeout"} 1.0
# TYPE hsm_client_links gauge
hsm_client_links{node="a"} 1.0
# TYPE hsm_client_outstanding gauge
hsm_client_outstanding{node="a"} 7.0
# TYPE offload_handshake_stage_seconds histogram
offload_handshake_stage_seconds_bucket{stage="signature",le="0.01"} 3.0
offload_handshake_stage_seconds_bucket{stage="signature",le="+Inf"} 4.0
offload_handshake_stage_seconds_sum{stage="signature"} 0.4
offload_handshake_stage_seconds_count{stage="signature"} 4.0
# TYPE offload_signature_seconds histogram
offload_signature_seconds_sum{node="a",scheme="ecdsa_secp256r1_sha256"} 0.1
offload_signature_seconds_count{node="a",scheme="ecdsa_secp256r1_sha256"} 10.0
offload_signature_seconds_sum{node="a",scheme="rsa_pss_rsae_sha256"} 0.3
offload_signature_seconds_count{node="a",scheme="rsa_pss_rsae_sha256"} 10.0
"""
ERRORS = {"hsm_client_errors{node=a,reason=timeout}": 3.0, "hsm_client_errors{node=b,reason=timeout}": 1.0}


def test_counters_and_stages() -> None:
    """Other gauges, and buckets, are left out; series that differ in other labels are one stage, or node."""
    found = parse(METRICS)
    assert found.counters == ERRORS
    assert found.stages == {"signature": Total(0.4, 4.0)}
    assert found.nodes == {"a": Total(0.4, 20.0)}
    assert found.outstanding == {"a": 7.0}


def test_how_counters_grew() -> None:
    """What did not change is left out, and the most comes first."""
    before = Metrics(ERRORS)
    after = Metrics({**ERRORS, "hsm_client_errors{node=a,reason=timeout}": 5.0, "hsm_client_retries": 9.0})
    assert growth(before, after, "hsm_client_") == {"retries": 9.0, "errors{node=a,reason=timeout}": 2.0}
    assert told(before, after) == ["its cluster client: 9 retries, 2 errors a timeout"]
    assert told(after, after) == []
    failures = Metrics({"offload_handshake_failures{reason=signature_overloaded}": 2.0})
    assert told(Metrics(), failures) == ["the proxy's failures: 2 signature_overloaded"]


def test_where_time_went_meanwhile() -> None:
    """Means are of what was added; a stage that none went through is left out."""
    before = Metrics(stages={"finish": Total(1.0, 10.0), "queue": Total(2.0, 5.0)})
    after = Metrics(
        stages={"finish": Total(1.5, 20.0), "queue": Total(2.0, 5.0), "signature": Total(0.375, 3.0)}
    )
    assert stages(before, after) == [
        Stage("finish", 10, 0.05),
        Stage("signature", 3, 0.125),
    ]


def test_what_a_proxy_did_from_look_to_look() -> None:
    """Means, and CPU in cores, are of the time between two looks; all of them add up to the whole."""
    worker = "offload_process_cpu_seconds{process=worker-0}"
    looks = [
        Look(100.0, Metrics({worker: 1.0}, {}, {"a": Total(1.0, 10.0)}, {"a": 0.0})),
        Look(101.0, Metrics({worker: 1.5}, {}, {"a": Total(1.5, 20.0)}, {"a": 3.0})),
        Look(103.0, Metrics({worker: 3.5}, {}, {"a": Total(1.5, 20.0)}, {"a": 5.0})),
    ]
    found = observed(looks, start=100.5)
    assert found.cpu_seconds == {"worker-0": 2.5}
    assert found.nodes == [Stage("a", 10, 0.05)]
    assert found.course == [
        Stretch(-0.5, 1.0, [], [Stage("a", 10, 0.05)], {"a": 3.0}, {"worker-0": 0.5}),
        Stretch(0.5, 2.0, [], [], {"a": 5.0}, {"worker-0": 1.0}),
    ]


def test_an_address_without_metrics() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LoadTestError, match=f"{address} gives no metrics: .*refused"):
        metrics(address)


class Metered(http.server.BaseHTTPRequestHandler):
    """Answers with metrics, but for the second and third time: it is too busy."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503 if self.asked in (2, 3) else 200)
        self.end_headers()
        self.wfile.write(METRICS.encode())

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


def test_a_watch_goes_on_when_a_proxy_is_too_busy_to_answer() -> None:
    """Looks that fail on the way are left out: the load goes on, and so do the looks."""
    with http.server.HTTPServer(("127.0.0.1", 0), Metered) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with Watch(f"127.0.0.1:{server.server_port}", 0.01) as watch:
            deadline = time.monotonic() + 10
            while len(watch.looks) < 3 and time.monotonic() < deadline:
                time.sleep(0.005)
        server.shutdown()
    assert len(watch.looks) >= 3
    found = watch.observed(watch.looks[0].at)
    assert found is not None
    assert found.course[0].begin == 0


def test_a_watch_of_nothing() -> None:
    """A server that is not ours says nothing of itself."""
    with Watch("", 1.0) as watch:
        pass
    assert watch.observed(0.0) is None
