"""Figures and bars, and what a server agrees on."""

from __future__ import annotations

import pytest

from loadtest.figures import Bar, Figure, compare, cpu_model
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
    figure = Figure("rate", 7.5, "1/s", 7.5)
    assert figure.verdict == ""
    assert str(figure) == "rate: 7.5 1/s"


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
