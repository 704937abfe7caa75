"""Which connections get a line, and how what a peer chose is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.config import LogSettings
from offload.connection_log import TEXT_MOST, ConnectionLog, plain


def told(outcomes: list[str], **settings: object) -> list[str]:
    """Those of these outcomes that get a line."""
    log = ConnectionLog(LogSettings.model_validate(settings), lambda *_, **__: None)
    return [outcome for outcome in outcomes if log.wants(outcome)]


@given(st.floats(0.01, 1), st.integers(1, 500))
def test_a_sample_is_spread_evenly(sample: float, count: int) -> None:
    """Of any run of connections the configured share is told, give or take one."""
    lines = len(told(["relayed"] * count, connections="all", sample=sample))
    assert abs(lines - count * sample) <= 1.001


@pytest.mark.parametrize("sample", [0.01, 1.0])
def test_failures_are_told_always(sample: float) -> None:
    """No sample hides them; a load balancer's probe is none."""
    outcomes = ["handshake_failed", "refused", "upstream_failed", "upstream_reset", "internal_error", "probe"]
    for connections in ("failures", "all"):
        assert told(outcomes, connections=connections, sample=sample) == outcomes[:-1]
    assert told(["relayed", "client_reset", "idle_timeout"], connections="failures") == []


@given(st.text(max_size=400))
def test_no_text_can_forge_a_line(text: str) -> None:
    """Only visible ASCII comes out, bounded; what is plain already stays as it is."""
    written = plain(text)
    assert all("!" <= character <= "~" for character in written)
    assert len(written) <= TEXT_MOST * len("\\u{10ffff}")
    assert plain("www.example.org") == "www.example.org"
    assert plain('a\n"\x1b[31m\\ é') == 'a\\u{a}"\\u{1b}[31m\\u{5c}\\u{20}\\u{e9}'
