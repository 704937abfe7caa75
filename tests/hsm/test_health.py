"""What is thought of a node: events and a clock in, states out; whole clusters over virtual hours."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsm.client import health
from hsm.client.health import NodeHealth, State, may_eject, median

FEW = health.EJECT_AFTER


def suspect(now: float = 0.0, cause: str = "timeout") -> NodeHealth:
    """A node that has just become suspect."""
    node = NodeHealth(now)
    while node.state is State.HEALTHY:
        node.failed(cause, now, may_eject=False)
    return node


def ejected(now: float = 0.0) -> NodeHealth:
    """A node that was ejected just now, for the first time."""
    node = NodeHealth(now)
    assert node.signed_wrongly(now, may_eject=True)
    return node


def probing(now: float = 0.0) -> NodeHealth:
    """A node whose first ejection is over just now."""
    node = ejected(now - health.EJECTION_FIRST)
    assert node.tick(now)
    return node


def test_failures_in_a_row_make_it_suspect_and_then_eject_it() -> None:
    """Each change is told once, with its cause."""
    node = NodeHealth(0.0)
    changes = [
        (number + 1, node.state, node.cause, node.since)
        for number in range(20)
        if node.failed("timeout", float(number), may_eject=True)
    ]
    first, second = health.SUSPECT_AFTER, health.SUSPECT_AFTER + FEW
    assert changes == [
        (first, State.SUSPECT, "timeout", first - 1.0),
        (second, State.EJECTED, "timeout", second - 1.0),
    ]


def test_single_failures_between_good_answers_are_no_reason() -> None:
    """One in twenty for a virtual hour: the node stays healthy."""
    node = NodeHealth(0.0)
    for number in range(36_000):
        now = number / 10
        node.tick(now)
        assert not (
            node.failed("crypto_error", now, may_eject=True) if number % 20 == 0 else node.succeeded(now)
        )


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_share_of_failures_ejects(share: float) -> None:
    """A node that fails three of ten is out within a second at 100 requests a second, never many in a row."""
    node, chance = NodeHealth(0.0), random.Random(1)
    for number in range(100):
        if chance.random() < share:
            node.failed("internal_error", number / 100, may_eject=True)
        else:
            node.succeeded(number / 100)
    assert (node.state, node.cause) == (State.EJECTED, "internal_error")


def test_old_failures_are_forgotten() -> None:
    """A share is counted over the last seconds: failures of a minute ago say nothing."""
    node = NodeHealth(0.0)
    for number in range(100):
        node.succeeded(0.0)
        if number % 10 == 0:
            node.failed("timeout", 0.0, may_eject=True)
    for second in range(60):
        node.tick(float(second))
    for number in range(40):
        node.succeeded(60.0)
        if number % 20 == 0:
            node.failed("timeout", 60.0, may_eject=True)
    assert node.state is State.HEALTHY


def test_good_answers_end_a_suspicion() -> None:
    """So many in a row; a failure between them starts the count anew."""
    node = suspect()
    for _ in range(health.GOOD_ENOUGH - 1):
        assert not node.succeeded(1.0)
    node.failed("timeout", 1.0, may_eject=False)
    assert [node.succeeded(1.0) for _ in range(health.GOOD_ENOUGH)] == [False] * (health.GOOD_ENOUGH - 1) + [
        True
    ]
    assert (node.state, node.cause) == (State.HEALTHY, "")


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["good", "bad", "wrong", "silent", "slow", "quick", "tick"]), st.floats(0.001, 5)
    ),
    max_size=200,
)


def tell(node: NodeHealth, event: str, now: float, *, may_eject: bool) -> bool:
    """One event other than a test signature."""
    match event:
        case "good":
            return node.succeeded(now)
        case "bad":
            return node.failed("timeout", now, may_eject=may_eject)
        case "wrong":
            return node.signed_wrongly(now, may_eject=may_eject)
        case "silent":
            return node.silent(3.0, now, may_eject=may_eject)
        case "slow" | "quick":
            return node.compared(0.5 if event == "slow" else 0.005, 0.005, now)
        case _:
            return node.tick(now)


@given(events=EVENTS)
def test_only_test_signatures_end_an_ejection(events: list[tuple[str, float]]) -> None:
    """Whatever else happens, also good answers to requests, an ejected node is probing at best."""
    node, now = ejected(), 0.0
    for event, pause in events:
        now += pause
        tell(node, event, now, may_eject=True)
        assert node.is_ejected
    while node.state is not State.PROBING:
        now += 1.0
        node.tick(now)
    while not node.succeeded(now, test=True):
        assert node.is_ejected
    assert node.is_healthy


@given(events=EVENTS)
def test_without_leave_nothing_is_ejected(events: list[tuple[str, float]]) -> None:
    """The worst that can happen to it is suspicion, and three good answers and no slowness end that."""
    node, now = NodeHealth(0.0), 0.0
    for event, pause in events:
        now += pause
        tell(node, event, now, may_eject=False)
        assert not node.is_ejected
    node.compared(0.005, 0.005, now)
    for _ in range(health.GOOD_ENOUGH):
        node.succeeded(now)
    assert node.is_healthy


@given(events=EVENTS, leave=st.booleans())
def test_changes_are_told(events: list[tuple[str, float]], leave: bool) -> None:
    """An event returns True just when the state or its cause is another one; that is then of now."""
    node, now = NodeHealth(0.0), 0.0
    for event, pause in events:
        now += pause
        before = (node.state, node.cause)
        changed = tell(node, event, now, may_eject=leave)
        assert changed == (before != (node.state, node.cause))
        assert not changed or node.since == now
        assert bool(node.cause) == (node.state is not State.HEALTHY)


@given(
    count=st.integers(1, 12),
    share=st.floats(0, 1),
    events=st.lists(st.tuples(st.integers(0, 11), EVENTS.map(lambda e: e[:5])), max_size=30),
)
def test_the_floor_holds(count: int, share: float, events: list[tuple[int, list[tuple[str, float]]]]) -> None:
    """However the nodes of a cluster fail, never more than the share are ejected or probing."""
    nodes, now = [NodeHealth(0.0) for _ in range(count)], 0.0
    for index, story in events:
        node = nodes[index % count]
        for event, pause in story:
            now += pause / 10
            leave = may_eject(sum(other.is_ejected for other in nodes), count, share)
            tell(node, event, now, may_eject=leave)
            for other in nodes:
                other.tick(now)
            assert sum(other.is_ejected for other in nodes) <= share * count


def test_a_virtual_hour_of_a_cluster_that_fails_now_and_then() -> None:
    """Six nodes that fail at random for an hour: the floor holds, and each one is well again at the end."""
    nodes, chance, now = [NodeHealth(0.0) for _ in range(6)], random.Random(1), 0.0
    seen: Counter[State] = Counter()
    while now < 3600:
        now += 0.25
        ill = int(now / 300) % 2 == 0
        for node in nodes:
            leave = may_eject(sum(other.is_ejected for other in nodes), len(nodes), 0.5)
            node.tick(now)
            if ill and chance.random() < 0.4:
                node.failed("timeout", now, may_eject=leave)
            else:
                node.succeeded(now, test=node.test_is_due(now))
            seen[node.state] += 1
        assert sum(node.is_ejected for node in nodes) <= 3
    assert all(node.is_healthy for node in nodes)
    assert min(seen.values()) > 0
    assert set(seen) == set(State)


def test_ejections_double_and_are_forgiven() -> None:
    """1, 2, 4, … up to 60 s; after a healthy minute the next one is of 1 s again."""

    def ejection(node: NodeHealth, now: float) -> float:
        """How long it is ejected, when it signs wrongly now, to a tenth of a second."""
        node.signed_wrongly(now, may_eject=True)
        since = now
        while node.state is State.EJECTED:
            now += 0.1
            node.tick(now)
        return round(now - since, 1)

    node, now, lengths = NodeHealth(0.0), 0.0, []
    for _ in range(9):
        lengths.append(ejection(node, now))
        now += 100.0
    assert lengths == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.11)
    while not node.succeeded(now, test=True):
        pass
    node.tick(now + health.FORGIVEN_AFTER - 1)
    assert ejection(node, now + health.FORGIVEN_AFTER - 1) == pytest.approx(60, abs=0.11)
    now += 1000
    while not node.succeeded(now, test=True):
        pass
    node.tick(now + health.FORGIVEN_AFTER + 1)
    assert ejection(node, now + health.FORGIVEN_AFTER + 1) == pytest.approx(1, abs=0.11)


def test_a_wrong_signature_ejects_at_once() -> None:
    """One is enough, from any state."""
    for node in (NodeHealth(0.0), suspect(), probing(0.0)):
        assert node.signed_wrongly(0.0, may_eject=True)
        assert (node.state, node.cause) == (State.EJECTED, "bad_signature")


@pytest.mark.parametrize("event", ["bad", "wrong"])
def test_a_bad_test_ejects_for_longer_without_leave(event: str) -> None:
    """A probing node is out of the count already: nobody needs to be asked."""
    node = probing(0.0)
    assert tell(node, event, 0.0, may_eject=False)
    assert node.state is State.EJECTED
    assert not node.tick(2 * health.EJECTION_FIRST - 0.01)
    assert node.tick(2 * health.EJECTION_FIRST)


def test_a_wrong_signature_without_leave_is_the_cause_of_a_suspicion() -> None:
    """Also of a node that was suspect for a lesser reason: being quick again does not clear it."""
    node = NodeHealth(0.0)
    node.compared(0.5, 0.005, 0.0)
    assert (node.state, node.cause) == (State.SUSPECT, "slow")
    assert node.signed_wrongly(1.0, may_eject=False)
    assert not node.signed_wrongly(1.0, may_eject=False)
    assert not node.compared(0.005, 0.005, 2.0)
    assert (node.state, node.cause) == (State.SUSPECT, "bad_signature")


def test_silence_is_judged_beside_the_usual_latency() -> None:
    """A slow HSM is not silent when it takes its time; a quick one is after 50 ms."""
    node = NodeHealth(0.0)
    assert not node.is_silent(health.SILENT_AFTER, 0.001)
    assert node.is_silent(health.SILENT_AFTER + 0.001, 0.001)
    assert not node.is_silent(1.5, 0.2)
    assert node.is_silent(1.7, 0.2)


def test_a_silent_node_is_suspect_and_then_ejected() -> None:
    """Suspect with the first look that finds it silent, ejected after two seconds of it, given leave."""
    node = NodeHealth(0.0)
    assert node.silent(0.06, 0.06, may_eject=True)
    assert (node.state, node.cause) == (State.SUSPECT, "silent")
    assert not node.silent(health.SILENT_EJECT, 2.0, may_eject=True)
    assert not node.silent(health.SILENT_EJECT + 0.1, 2.1, may_eject=False)
    assert node.silent(health.SILENT_EJECT + 0.1, 2.1, may_eject=True)
    assert node.state is State.EJECTED


def test_a_probing_node_that_stays_silent_is_ejected_again() -> None:
    """It owes answers from before, which counts for nothing, and then one to its tests, which does."""
    node = probing(10.0)
    assert not node.silent(9.0, 10.0 + health.SILENT_EJECT, may_eject=False)
    assert node.silent(11.1, 10.1 + health.SILENT_EJECT, may_eject=False)
    assert (node.state, node.cause) == (State.EJECTED, "silent")


def test_an_outlier_is_suspect_until_it_is_none() -> None:
    """Good answers do not end that, being as quick as the others does; without others nobody is slow."""
    node = NodeHealth(0.0)
    assert not node.compared(0.034, 0.005, 0.0)
    assert not node.compared(5.0, 0.0, 0.0)
    assert node.compared(0.036, 0.005, 0.0)
    for _ in range(10):
        assert not node.succeeded(1.0)
    assert node.compared(0.034, 0.005, 2.0)
    assert node.is_healthy


@given(latencies=st.lists(st.floats(0.001, 10), max_size=9))
def test_the_median_is_one_of_them(latencies: list[float]) -> None:
    """Unknown ones (0) are left out; at least half are no quicker, and of two the quicker counts."""
    typical = median([0.0, *latencies, 0.0])
    if not latencies:
        assert typical == 0.0
    else:
        assert typical in latencies
        assert 2 * sum(latency >= typical for latency in latencies) >= len(latencies)
        assert 2 * sum(latency <= typical for latency in latencies) >= len(latencies)


@pytest.mark.parametrize(
    ("node", "interval"),
    [
        (NodeHealth(0.0), health.HEALTHY_TEST),
        (suspect(), health.SUSPECT_TEST),
        (probing(), health.PROBING_TEST),
    ],
)
def test_tests_are_due_by_state(node: NodeHealth, interval: float) -> None:
    """The less a node is trusted, the more often; once told, the next one is due an interval later."""
    assert not node.test_is_due(interval - 0.001)
    assert node.test_is_due(interval)
    assert not node.test_is_due(2 * interval - 0.001)
    assert node.test_is_due(2 * interval)


def test_who_needs_no_test_gets_none() -> None:
    """A healthy node that answers, and an ejected one."""
    node = NodeHealth(0.0)
    for second in range(100):
        node.succeeded(float(second))
        assert not node.test_is_due(float(second))
    assert not ejected().test_is_due(1000.0)
