"""What a proxy of ours counted while it was loaded, and where time went."""

from __future__ import annotations

import pytest

from loadtest.scrape import Metrics, Stage, Total, growth, metrics, parse, stages, told
from loadtest.targets.lab import LoadTestError, free_port

METRICS = """\
# TYPE hsm_client_errors_total counter
hsm_client_errors_total{node="a",reason="timeout"} 3.0
hsm_client_errors_total{node="b",reason="timeout"} 1.0
# TYPE hsm_client_links gauge
hsm_client_links{node="a"} 1.0
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
    """Gauges and buckets are left out; series that differ in other labels are one stage."""
    found = parse(METRICS)
    assert found.counters == ERRORS
    assert found.stages == {"signature": Total(0.4, 4.0), "signature by node a": Total(0.4, 20.0)}


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


def test_an_address_without_metrics() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(LoadTestError, match=f"{address} gives no metrics: .*refused"):
        metrics(address)
