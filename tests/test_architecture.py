"""The rules of the layout, read off the syntax trees: who may import what, and how long things get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("offload", "hsm")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

PURE_MODULES = (
    "hsm/keyless.py",
    "hsm/client/selection.py",
    "hsm/client/health.py",
    "hsm/client/latency.py",
    "hsm/client/patience.py",
    "hsm/client/limit.py",
    "hsm/client/budget.py",
    "hsm/client/waiting.py",
    "hsm/client/wheel.py",
    "offload/balance.py",
    "offload/tickets.py",
    "offload/upstream_health.py",
    "offload/proxy_protocol.py",
    "offload/address_limits.py",
    "offload/idleness.py",
    "offload/networks.py",
    "offload/http/body.py",
    "offload/http/errors.py",
    "offload/http/fields.py",
    "offload/http/head.py",
    "offload/http/exchange.py",
    "offload/http/routes.py",
    "offload/http/hosts.py",
    "offload/sampling.py",
    "offload/http/accept.py",
    "offload/http/access_log.py",
    "offload/http/answers.py",
    "offload/http/forwarded.py",
    "offload/http/guarded.py",
    "offload/http/header_policy.py",
    "offload/http/header_rules.py",
    "offload/http/request_id.py",
    "loadtest/capacity.py",
    "loadtest/generate/histogram.py",
    "loadtest/generate/records.py",
    "loadtest/generate/schedule.py",
    "loadtest/plan/quantiles.py",
    "loadtest/plan/search.py",
    "loadtest/plan/sizing.py",
    "loadtest/plan/words.py",
    "loadtest/verdict.py",
)
"""Those that exist take time and randomness as arguments and know no I/O."""
IMPURE = frozenset({"asyncio", "socket", "time", "random", "uvloop", "select", "secrets", "selectors"})

FILE_LINES_MOST = 400
FUNCTION_LINES_MOST = 60


def name_of(path: Path) -> str:
    """A file's path from the project's root."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """A file's dotted module name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as a dotted name.

    `from a import b` gives both `a` and `a.b`: which one is a module can't be told from here.
    """
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_in(module: str, package: str) -> bool:
    """Whether `module` is `package` or lies in it."""
    return module == package or module.startswith(package + ".")


def offenders(paths: list[Path], *forbidden: str) -> list[str]:
    """`file imports module`, for each import of a forbidden package."""
    return [
        f"{name_of(path)} imports {module}"
        for path in paths
        for module in imports(path)
        if any(is_in(module, package) for package in forbidden)
    ]


def below(folder: str) -> list[Path]:
    """The sources in a folder."""
    found = [path for path in SOURCES if name_of(path).startswith(folder + "/")]
    assert found, f"no sources in {folder}"
    return found


def test_hsm_never_imports_offload() -> None:
    """Rule 1: `hsm` is of use without the proxy."""
    assert offenders(below("hsm"), "offload", "loadtest", "tests") == []


def test_client_and_node_do_not_know_each_other() -> None:
    """Rule 1: a client and a node share the codec, the schemes and the errors, and nothing of each other."""
    assert offenders(below("hsm/client"), "hsm.node") == []
    assert offenders(below("hsm/node"), "hsm.client") == []


def test_tls_binding_knows_no_event_loop_and_no_hsm() -> None:
    """Rule 2: `offload.tls` is driven from outside, and the signature comes from outside."""
    assert offenders(below("offload/tls"), "asyncio", "uvloop", "select", "selectors", "hsm") == []


def test_connection_knows_a_signer_and_not_the_cluster() -> None:
    """Rule 2: a connection asks a protocol for its signature, so that another one can take its place."""
    path = ROOT / "offload/connection.py"
    assert offenders([path], "hsm.client.cluster", "hsm.client.ClusterClient", "hsm.client.node") == []
    protocols = [
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in node.bases)
    ]
    assert "Signer" in protocols


@pytest.mark.parametrize("name", [name for name in PURE_MODULES if (ROOT / name).exists()])
def test_pure_modules_do_no_io_and_read_no_clock(name: str) -> None:
    """Rule 3: time and randomness are arguments, so that tests never wait."""
    assert offenders([ROOT / name], *IMPURE) == []


def test_pure_modules_are_found() -> None:
    """Rule 3 is checked for the modules that exist today: a renamed one must not escape it."""
    assert {"hsm/keyless.py", "hsm/client/selection.py", "offload/tickets.py"} <= {
        name for name in PURE_MODULES if (ROOT / name).exists()
    }


def test_cffi_stays_where_c_is_called() -> None:
    """Rule 4: cffi, and the handles of the s2n binding, are imported only beside the C calls."""
    allowed = (*(name_of(path) for path in below("offload/tls")), "hsm/node/cryptoki.py")
    others = [path for path in SOURCES if name_of(path) not in allowed]
    assert offenders(others, "cffi", "_cffi_backend", "offload.tls.s2n.ffi", "offload.tls.s2n.lib") == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    """A file fits in a head (400 lines), a function on a screen or two (60)."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES_MOST, f"{name_of(path)} has {lines} lines"
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {length} lines"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MOST
    ]
    assert long == []
