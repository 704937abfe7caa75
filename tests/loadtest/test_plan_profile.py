"""What a planner knows of HSMs: latencies by percentile, rates by their number, and where both come from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.errors import ConfigurationError
from loadtest.plan import profile
from loadtest.plan.profile import HsmProfile
from loadtest.plan.quantiles import Quantiles

rising = st.lists(st.floats(0, 10), min_size=1, max_size=8).map(sorted)
tables = st.dictionaries(st.integers(1, 40), st.floats(0.1, 1e6), min_size=1, max_size=5).map(
    lambda table: dict(zip(sorted(table), sorted(table.values()), strict=True))
)


def hsm(**fields: Any) -> HsmProfile:
    """A profile about which only some things matter."""
    plain: dict[str, Any] = {
        "name": "x",
        "source": "y",
        "signatures_per_second": {"p256": {1: 100.0}},
        "latency": {"p50": 0.005},
        "latency_source": "z",
    }
    return HsmProfile(**{**plain, **fields})


@given(rising, st.floats(0, 1), st.floats(0, 1))
def test_percentiles_rise(values: list[float], first: float, second: float) -> None:
    """A higher share has no lower value, and none is outside of what is known."""
    quantiles = Quantiles({index / len(values): value for index, value in enumerate(values)})
    low, high = quantiles.at(min(first, second)), quantiles.at(max(first, second))
    assert values[0] <= low <= high <= values[-1]


@given(rising)
def test_the_mean_is_that_of_draws(values: list[float]) -> None:
    """Of evenly spread ones."""
    quantiles = Quantiles({(index + 1) / (len(values) + 1): value for index, value in enumerate(values)})
    draws = [quantiles.at((number + 0.5) / 2000) for number in range(2000)]
    assert quantiles.mean == pytest.approx(sum(draws) / 2000, abs=0.01)


def test_percentiles_by_name() -> None:
    """Between two of them values are spread evenly."""
    quantiles = Quantiles.named({"p50": 0.004, "p99.9": 0.012, "p0": 0.002})
    assert [quantiles.at(share) for share in (0.0, 0.25, 0.5, 0.999, 1.0)] == pytest.approx(
        [0.002, 0.003, 0.004, 0.012, 0.012]
    )


@given(tables, st.integers(1, 100))
def test_more_hsms_never_do_less(table: dict[int, float], hsms: int) -> None:
    """Whatever is known of their rate, and beyond it."""
    known = hsm(signatures_per_second={"p256": table})
    assert known.rate("p256", hsms + 1) >= known.rate("p256", hsms) * 0.999999 > 0
    assert all(known.rate("p256", count) == pytest.approx(rate) for count, rate in table.items())


def test_cloudhsm_as_published() -> None:
    """Between the published numbers of HSMs the rate grows evenly, beyond them as before."""
    known = profile.load(["cloudhsm-hsm2m.medium"])
    assert [known.rate("p256", hsms) for hsms in (1, 2, 3, 6, 9)] == pytest.approx(
        [1500, 3000, 4500, 7000, 9500]
    )
    assert [known.rate("rsa2048", hsms) for hsms in (2, 3, 6)] == [2000, 3000, 5000]
    assert profile.load(["cloudhsm-hsm1.medium"]).rate("p256", 4) == 1000


def test_sessions_limit_the_rate() -> None:
    """Two at a time, 5 ms each, are 400 a second, whatever a data sheet says."""
    known = hsm(signatures_per_second={"p256": {1: 1000.0}}, parallel=2)
    assert known.rate("p256", 3) == pytest.approx(1200)


@pytest.mark.parametrize("path", sorted(profile.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_that_come_with_the_tool(path: Path) -> None:
    """Each is found by its name and says where its figures are from."""
    known = profile.load([path.stem])
    assert known.most
    assert "docs.aws.amazon.com" in known.source
    assert "assumed" in known.latency_source


BENCH = {
    "tool": "hsm bench", "node": "unix:/run/a.sock", "key": "ab", "scheme": "ecdsa_secp256r1_sha256", "concurrency": 1,
    "seconds": 5.0, "signatures": 900, "rate": 180.0, "errors": {}, "latency": {"p0": 0.004, "p50": 0.005, "p99": 0.009},
}  # fmt: skip


def bench(directory: Path, name: str, **changes: Any) -> str:
    (directory / name).write_text(json.dumps({**BENCH, **changes}))
    return name


def test_a_measured_hsm(tmp_path: Path) -> None:
    """The latency is that of a lone signature, the rate that of many in flight; more HSMs do as many times that."""
    names = [bench(tmp_path, "many.json", concurrency=64, rate=800.0), bench(tmp_path, "one.json")]
    known = profile.load(names, tmp_path)
    assert known.rate("ecdsa_secp256r1_sha256", 3) == 2400
    assert known.quantiles().at(0.5) == 0.005
    assert known.notes == []
    assert "one.json" in known.latency_source


def test_a_measured_hsm_that_was_not_busy(tmp_path: Path) -> None:
    """Then it may do more than was seen, and the planner is told so."""
    names = [bench(tmp_path, "one.json"), bench(tmp_path, "four.json", concurrency=4, rate=700.0)]
    assert "may do more than 700" in profile.load(names, tmp_path).notes[0]


def test_mistakes_in_results_of_a_bench(tmp_path: Path) -> None:
    """Each is told in a line that names the file and the remedy."""
    (tmp_path / "text.json").write_text("1,234 signatures/s")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    bench(tmp_path, "other.json", tool="sysbench")
    bench(tmp_path, "bent.json", rate=-1)
    bench(tmp_path, "one.json")
    bench(tmp_path, "two.json", concurrency=64, scheme="rsa_pss_rsae_sha256")
    bench(tmp_path, "none.json", latency={})
    for names, words in (
        (["gone.json"], "gone.json: cannot read it"),
        (["text.json"], "text.json: not JSON; write it with `hsm bench --json`"),
        (["deep.json"], "deep.json: not JSON"),
        (["other.json"], "other.json: not a result of `hsm bench --json`"),
        (["bent.json"], "bent.json: rate"),
        (["none.json"], "none.json: latency"),
        (["one.json"], "one.json: one more result of `hsm bench --json` is needed"),
        (["one.json", "two.json"], "it is about rsa_pss_rsae_sha256"),
        (["one.json", "x.yaml"], "several files can only be results"),
        (["cloudhsm"], "cloudhsm: no such type of HSM; give a .yaml file, results of"),
        (["../hsms/cloudhsm-hsm1.medium"], "no such type of HSM"),
    ):
        with pytest.raises(ConfigurationError, match=words.replace("?", r"\?")):
            profile.load(names, tmp_path)


@given(st.dictionaries(st.text(max_size=5), st.floats() | st.none() | st.text(max_size=3), max_size=3))
def test_any_percentiles(latency: dict[str, Any]) -> None:
    """Are a profile, or one clear error."""
    try:
        known = hsm(latency=latency)
    except ValueError:
        return
    draw = random.Random(1).random
    assert all(known.quantiles().at(draw()) >= 0 for _ in range(10))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"latency": {"p50": 0.005, "p99": 0.004}}, "a higher one has a lower value"),
        ({"latency": {"p101": 0.005}}, "p101"),
        ({"signatures_per_second": {"p256": {1: 200.0, 2: 100.0}}}, "p256: more HSMs do less"),
        ({"signatures_per_second": {"p256": {}}}, "p256"),
        ({"signatures_per_second": {"p256": {0: 5.0}}}, "p256"),
    ],
)
def test_profiles_that_make_no_sense(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        hsm(**fields)
