"""`offload check`: everything that is wrong with a configuration, one line each."""

from __future__ import annotations

import asyncio
import resource
import ssl
import warnings
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from cryptography import x509

from hsm.config import LinkTLS
from hsm.errors import ConfigurationError
from hsm.terminal import counted, fail
from hsm.transport import listen_tcp
from offload import plan, runtime
from offload.account import find_account
from offload.certificates import Chain
from offload.config import Config, load
from offload.http.hosts import is_among
from offload.plan import ListenerPlan
from offload.plan_upstreams import plan_groups
from offload.problems import Problems
from offload.rotation import make_ring
from offload.sockets import bind_listener

EXPIRES_SOON = timedelta(days=14)


def check_file(path: Path, *, connect: bool) -> int:
    """Print every mistake, or what was found good. The exit code: 0 or 2."""
    try:
        config = load(path)
    except ConfigurationError as error:
        return _report(str(error).splitlines())
    problems, plans = find_problems(config, path)
    if problems.lines:
        return _report([line if line.startswith("/") else f"{path}: {line}" for line in problems.lines])
    for line in (*certificate_warnings(plans), *route_warnings(plans)):
        print(f"warning: {line}")
    if connect:
        from offload.examine import examine_tokens
        from offload.probe import probe

        if lines := examine_tokens(config, path) + asyncio.run(probe(config, path, plans)):
            return _report(lines)
    chains = sum(len(p.chains) for p in plans)
    found = {"listener": len(plans), "certificate": chains, "node": len(config.hsm.nodes)}
    print(f"ok: {', '.join(counted(number, noun) for noun, number in found.items())}")
    return 0


def _report(lines: Iterable[str]) -> int:
    return fail("\n".join(lines)).exit_code


def find_problems(config: Config, path: Path) -> tuple[Problems, list[ListenerPlan]]:
    """All mistakes, and the listeners as far as they are good. Changes nothing."""
    problems = Problems()
    plan_groups(config, problems)
    plans = []
    now = datetime.now(UTC)
    for index, settings in enumerate(config.listeners):
        key = f"listeners[{index}]"
        listener = plan.plan_listener(settings, key, problems)
        plans.append(listener)
        for chain in listener.chains:
            problems.lines += [f"{chain.place}: {line}" for line in chain_problems(chain, now)]
        problems.lines += name_problems(listener.chains, key)
        problems.attempt(_check_port, config, index, path)
    problems.attempt(plan.check_local_nodes, config.hsm.nodes)
    for index, node in enumerate(config.hsm.nodes):
        if node.address is not None:
            problems.attempt(plan.node_data, node, node.address)
        if node.tls is not None:
            problems.attempt(_check_link, node.tls, f"hsm.nodes[{index}].tls")
        if node.run is not None:
            problems.attempt(_check_socket_path, config, path, f"{node.name}-admin.sock")
    problems.attempt(_check_socket_path, config, path, runtime.CONTROL_SOCKET)
    problems.attempt(find_account, config.user, config.group)
    problems.attempt(make_ring, config.tickets)
    problems.attempt(_check_admin, config, path)
    problems.lines += limit_problems(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return problems, plans


def chain_problems(chain: Chain, now: datetime) -> list[str]:
    """A certificate that is not valid now, or a chain that does not lead to a root."""
    problem = chain.validity_problem(now)
    problems = [problem] if problem else []
    last = chain.certificates[-1]
    if last.issuer != last.subject and last.issuer not in _system_roots():
        problems.append(
            f"{chain.path}: the chain is incomplete: the certificate of its issuer "
            f"({last.issuer.rfc4514_string()}) is missing; append it"
        )
    for lower, upper in pairwise(chain.certificates):
        try:
            lower.verify_directly_issued_by(upper)
        except Exception as error:  # whatever it is, clients will refuse the chain too
            problems.append(
                f"{chain.path}: {upper.subject.rfc4514_string()} did not sign the certificate before it "
                f"({type(error).__name__}); take the issuer's current certificate"
            )
    return problems


@lru_cache
def _system_roots() -> frozenset[x509.Name]:
    """The names of the roots that this system trusts: chains may leave those out."""
    cafile = ssl.get_default_verify_paths().cafile
    if cafile is None:
        return frozenset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old roots have odd serial numbers; not ours to mend
            return frozenset(c.subject for c in x509.load_pem_x509_certificates(Path(cafile).read_bytes()))
    except (OSError, ValueError):
        return frozenset()


def name_problems(chains: list[Chain], key: str) -> list[str]:
    """Two certificates of one key type for one name: only one of them would ever be served."""
    seen: dict[tuple[str, str], Path] = {}
    problems = []
    for chain in chains:
        for name in chain.names or (chain.subject,):
            first = seen.setdefault((name, chain.key.key_type), chain.path)
            if first is not chain.path:
                problems.append(
                    f"{key}.certificates: {first} and {chain.path} are both {chain.key.key_type.upper()} "
                    f"certificates for {name}; keep one"
                )
    return problems


def _check_port(config: Config, index: int, path: Path) -> None:
    if runtime.is_running(runtime.directory_of(config, path)):
        return  # of course its ports are taken
    for sock in bind_listener(config.listeners[index].address, 1, f"listeners[{index}].address"):
        sock.close()


def _check_admin(config: Config, path: Path) -> None:
    if config.admin is None or config.admin.address.path:
        return
    if not runtime.is_running(runtime.directory_of(config, path)):
        listen_tcp(config.admin.address, "admin.address").close()


def _check_socket_path(config: Config, path: Path, name: str) -> None:
    from hsm.config import parse_socket_path

    try:
        parse_socket_path(str(runtime.directory_of(config, path) / name))
    except ValueError as error:
        raise ConfigurationError(f"runtime_directory: {error}") from error


def _check_link(tls: LinkTLS, key: str) -> None:
    """The other side will check our certificate against the same CA: so do we."""
    try:
        authorities = x509.load_pem_x509_certificates(tls.ca.read_bytes())
        chain = x509.load_pem_x509_certificates(tls.certificate.read_bytes())
    except (OSError, ValueError):
        return  # told already, by loading the credentials
    for authority in authorities:
        try:
            chain[-1].verify_directly_issued_by(authority)
        except Exception:  # noqa: S112  # any reason: then it is not this authority
            continue
        return
    if chain[-1] not in authorities:
        raise ConfigurationError(
            f"{key}: {tls.ca} did not sign {tls.certificate}; use the certificate that this CA issued"
        )


def limit_problems(config: Config, open_files: int) -> list[str]:
    """Whether the process may open two files for each connection."""
    needed = 2 * config.limits.max_connections
    if open_files >= needed:
        return []
    line = (
        f"limits.max_connections: {config.limits.max_connections} connections need {needed} open files, "
        f"but the limit is {open_files}; raise it (ulimit -n, LimitNOFILE=) or allow fewer connections"
    )
    return [line]


def certificate_warnings(plans: list[ListenerPlan]) -> list[str]:
    """What works now and won't soon, or not with all clients, and OCSP responses that are of no use."""
    now = datetime.now(UTC)
    return [line for p in plans for chain in p.chains for line in _doubts(chain, now)]


def _doubts(chain: Chain, now: datetime) -> Iterator[str]:
    if chain.not_after < now + EXPIRES_SOON:
        yield f"{chain.path}: expires on {chain.not_after:%Y-%m-%d}; renew it"
    if not chain.names:
        yield f"{chain.path}: has no subjectAltName, without which browsers refuse it; have it issued with one"
    for issuer in chain.certificates[1:]:
        if issuer.not_valid_after_utc <= now:
            yield (
                f"{chain.path}: the certificate of {issuer.subject.rfc4514_string()} in it expired on "
                f"{issuer.not_valid_after_utc:%Y-%m-%d}; take the issuer's current one"
            )
    if chain.staple is not None and (fault := chain.staple.fault(now)):
        yield f"{chain.staple.path}: not stapled: {fault}; fetch a new response"


def route_warnings(plans: list[ListenerPlan]) -> list[str]:
    """Hosts of routes that clients refuse, because no certificate is good for them."""
    return [
        f"listeners[{index}].http.routes[{position}]: no certificate of the listener is good for {host}; "
        "add one, or leave the host out"
        for index, plan in enumerate(plans)
        if plan.settings.mode == "http"
        for position, route in enumerate(plan.settings.http.routes)
        for host in route.hosts
        if not any(is_among(host, frozenset(chain.names)) for chain in plan.chains)
    ]
