"""What a reload changes, in words; and what it can't change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hsm.cluster_config import ClusterPolicy
from hsm.errors import ConfigurationError
from offload.config import Config
from offload.plan import ListenerPlan, State

_TOLD_BY_PART = ("listeners", "upstreams", "hsm", "workers")


def check_fixed(old: Config, new: Config) -> None:
    """Refuse what only a new process can take over. Raises ConfigurationError."""
    fixed = {
        "admin": (old.admin, new.admin),
        "user": (old.user, new.user),
        "group": (old.group, new.group),
        "sandbox": (old.sandbox, new.sandbox),
        "runtime_directory": (old.runtime_directory, new.runtime_directory),
    }
    faults = [
        f"{key}: can't change while the proxy runs; set it back, or use `offload upgrade`"
        for key, (before, after) in fixed.items()
        if before != after
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))


def describe(old: State, new: State) -> list[str]:
    """One line per difference; none when both are the same."""
    lines = [
        *_listeners(old.listeners, new.listeners),
        *_upstreams(old.config, new.config),
        *_nodes(old, new),
    ]
    if old.config.worker_count != new.config.worker_count:
        lines.append(f"workers: {old.config.worker_count} to {new.config.worker_count}")
    lines += [
        f"hsm.{key} changed"
        for key in (*ClusterPolicy.model_fields, "resolve_interval")
        if getattr(old.config.hsm, key) != getattr(new.config.hsm, key)
    ]
    if old.tickets is not new.tickets and old.config.tickets == new.config.tickets:
        lines.append("tickets: secret_file has other secrets")
    lines += [
        f"{section} changed"
        for section in Config.model_fields
        if section not in _TOLD_BY_PART and getattr(old.config, section) != getattr(new.config, section)
    ]
    return lines


def _listeners(old: Sequence[ListenerPlan], new: Sequence[ListenerPlan]) -> Iterator[str]:
    before = {each.settings.name: each for each in old}
    after = {each.settings.name: each for each in new}
    yield from (f"listener {name} removed" for name in before if name not in after)
    for name, plan in after.items():
        if name not in before:
            yield f"listener {name} added on {plan.settings.address}"
        else:
            yield from _listener(f"listener {name}", before[name], plan)


def _listener(title: str, old: ListenerPlan, new: ListenerPlan) -> Iterator[str]:
    known = {chain.pem for chain in old.chains}
    for chain in new.chains:
        if chain.pem not in known:
            serial = f"{chain.certificates[0].serial_number:x}"
            yield f"{title}: certificate of {chain.subject}, serial {serial}, until {chain.not_after:%Y-%m-%d}"
    if [chain.pem for chain in old.chains] != [chain.pem for chain in new.chains]:
        kept = {chain.pem for chain in new.chains}
        gone = sum(chain.pem not in kept for chain in old.chains)
        yield (
            f"{title}: {gone} certificates replaced or removed" if gone else f"{title}: certificates changed"
        )
    if old.tls.data() != new.tls.data() and [c.pem for c in old.chains] == [c.pem for c in new.chains]:
        yield f"{title}: what belongs to its TLS besides certificates"
    if old.pages != new.pages and old.settings.http.errors == new.settings.http.errors:
        yield f"{title}: error pages with other content"
    for section in type(new.settings).model_fields:
        before, after = getattr(old.settings, section), getattr(new.settings, section)
        if section == "address" and before != after:
            yield f"{title}: address {before} to {after}"
        elif before != after:
            yield f"{title}: {section} changed"


def _upstreams(old: Config, new: Config) -> Iterator[str]:
    before, after = old.upstreams, new.upstreams
    yield from (f"upstream {name} removed" for name in before if name not in after)
    yield from (f"upstream {name} added" for name in after if name not in before)
    yield from (f"upstream {name} changed" for name in after if before.get(name, after[name]) != after[name])


def _nodes(old: State, new: State) -> Iterator[str]:
    before = {node.name: node for node in old.nodes}
    after = {node.name: node for node in new.nodes}
    yield from (f"node {name} removed" for name in before if name not in after)
    yield from (f"node {name} added" for name in after if name not in before)
    yield from (f"node {name} changed" for name in after if before.get(name, after[name]) != after[name])
