"""Figures, bars, and what the client hands over."""

from __future__ import annotations

import json

import pytest

from loadtest.figures import Bar, Figure, Report, compare, cpu_model, single, table
from loadtest.results import Latency, LoadResult
from loadtest.stats import Sample
from loadtest.targets.agreement import Negotiated, parse_s_client

S_CLIENT = """\
CONNECTED(00000003)
Peer signing digest: SHA256
Peer signature type: RSA-PSS
Server Temp Key: X25519, 253 bits
---
New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256
Server public key is 2048 bit
"""


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (Bar(1.1), 1.1, True),
        (Bar(1.1), 1.11, False),
        (Bar(5, at_most=False), 5, True),
        (Bar(5, at_most=False), 4.9, False),
    ],
)
def test_a_bar_is_met_at_its_limit(bar: Bar, value: float, met: bool) -> None:
    assert bar.met_by(value) is met


def test_a_comparison_names_both_sides_ratio_and_verdict() -> None:
    ours, theirs = [Sample(2_200_000, 10)] * 8, [Sample(2_000_000, 10)] * 8
    figure = compare("CPU", "µs", ours, theirs, scale=1e-3, bar=Bar(1.05))
    assert (figure.ours, figure.theirs) == (220.0, 200.0)
    assert figure.verdict == "missed"
    assert str(figure).startswith("CPU: 220.0 µs, against 200.0; ratio 1.100 (95 %: 1.100..1.100;")
    assert str(figure).endswith("bar: at most 1.05: MISSED")


def test_a_figure_without_bar_has_no_verdict() -> None:
    figure = single("rate", "1/s", [Sample(10, 2), Sample(20, 2)])
    assert figure.verdict == ""
    assert str(figure) == "rate: 7.5 1/s"


def test_a_report_prints_and_saves_the_same() -> None:
    report = Report("relay", 8, {"machine": "a computer"}, ["a note"])
    report.figures += [Figure("memory", 13.0, "KB", 13.0, 25.0, bar=Bar(12))]
    lines: list[str] = []
    report.write(lines.append)
    assert lines == [
        "bench relay, 8 rounds",
        "  machine: a computer",
        "  a note",
        "- memory: 13.0 KB, against 25.0; bar: at most 12: MISSED",
    ]
    saved = json.loads(json.dumps(report.to_json()))
    assert saved["figures"][0]["verdict"] == "missed"
    assert report.missed == ["memory"]


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU 9000\n", "Fast CPU 9000"),
        ("Hardware\t: x\nModel\t\t: Board 4\n", "Board 4"),
        ("", "unknown CPU"),
    ],
)
def test_cpu_model(text: str, model: str) -> None:
    assert cpu_model(text) == model


def test_what_s_client_negotiated() -> None:
    terms = parse_s_client(S_CLIENT)
    assert terms == Negotiated("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519", "SHA256", "RSA-PSS")
    assert str(terms) == "TLSv1.3 TLS_AES_128_GCM_SHA256 X25519 RSA-PSS+SHA256"


def test_s_client_without_handshake() -> None:
    with pytest.raises(ValueError, match="does not show the version, cipher, group"):
        parse_s_client("connect:errno=111\n")


def test_results_survive_json() -> None:
    result = LoadResult("idle", 3, 2, 10, 1.5, {"timeout": 1}, {"TLSv1.3": 3}, Latency.of([1.0, 3.0, 2.0]))
    assert LoadResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.failed == 1
    assert (result.handshake.p50, result.handshake.highest, result.handshake.mean) == (2.0, 3.0, 2.0)
    assert result.request == Latency()


def test_a_table_is_aligned() -> None:
    lines = table(("signature", "p50"), [["2 ms", "10.0 ms"], ["20 ms", "1,000.0 ms"]])
    assert lines == ["signature         p50", "     2 ms     10.0 ms", "    20 ms  1,000.0 ms"]
