"""The configuration file: the contract is accepted as it stands, mistakes are told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hsm.config import Address
from hsm.errors import ConfigurationError
from offload.config import Config, load
from offload.config_upstream import UpstreamSettings
from offload.plan import plan_service
from tests.offload.identities import Identities

CONTRACT = """\
listeners:
  - name: web
    address: 127.0.0.1:8443          # host:port, [v6]:port
    certificates:
      - chain: /etc/offload/web.pem  # PEM, leaf first; its key is found in the cluster by SKI
    tls: {policy: default}
    upstream: {servers: ["127.0.0.1:8080"]}      # host:port or unix:/path
hsm:
  nodes:
    - {name: a, address: "unix:/run/offload/a.sock"}
    - {name: b, address: "tls://10.0.1.7:2407", tls: {ca: ca.pem, certificate: me.pem, key: me.key, server_name: b.example}}
    - {name: c, run: {token: software, keys: ./keys, emulate: {latency: 2ms}}}   # started by offload serve itself
  sign_timeout: 5s
  verify_signatures: always
admin: {address: 127.0.0.1:9443}
workers: auto
limits: {handshake_timeout: 10s, max_connections: 10000, drain_timeout: 30s}
"""
"""Word for word what outside tests use."""


def write(directory: Path, text: str) -> Path:
    """A configuration file."""
    path = directory / "offload.yaml"
    path.write_text(text)
    return path


def spoil(directory: Path, path: str, value: Any) -> list[str]:
    """The lines about the contract with another value at a dotted path; None takes the key away."""
    settings = yaml.safe_load(CONTRACT)
    target: Any = settings
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if value is None:
        del target[last]
    else:
        target[int(last) if isinstance(target, list) else last] = value
    file = write(directory, yaml.safe_dump(settings))
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


def test_the_contract_is_accepted_as_it_stands(tmp_path: Path) -> None:
    """Each key means what it says; durations are seconds, relative paths relative to the file."""
    config = load(write(tmp_path, CONTRACT))
    (web,) = config.listeners
    assert (web.name, web.address) == ("web", Address("127.0.0.1", 8443))
    assert web.certificates[0].chain == Path("/etc/offload/web.pem")
    assert web.tls.policy == "default"
    assert isinstance(web.upstream, UpstreamSettings)
    assert [server.address for server in web.upstream.servers] == [Address("127.0.0.1", 8080)]
    a, b, c = config.hsm.nodes
    assert a.address == Address(path="/run/offload/a.sock")
    assert b.address == Address("10.0.1.7", 2407)
    assert b.tls is not None
    assert (b.tls.ca, b.tls.key) == (tmp_path / "ca.pem", tmp_path / "me.key")
    assert b.tls.server_name == "b.example"
    assert c.run is not None
    assert c.run.model_dump()["keys"] == tmp_path / "keys"
    assert config.hsm.sign_timeout == 5
    assert config.hsm.verify_signatures == "always"
    assert config.admin is not None
    assert config.admin.address == Address("127.0.0.1", 9443)
    assert config.worker_count >= 1
    assert config.limits.handshake_timeout == 10
    assert config.limits.max_connections == 10_000
    assert config.limits.drain_timeout == 30


def test_the_contract_can_be_planned(identities: Identities, tmp_path: Path) -> None:
    """With paths that exist the contract's listener is good: chain read, policy known, upstream resolved."""
    text = CONTRACT.replace("/etc/offload/web.pem", str(identities["p256"].chain_path))
    (plan,), (group,) = plan_service(load(write(tmp_path, text)))
    assert plan.chains[0].ski == identities["p256"].ski
    assert (group.servers[0].host, group.servers[0].port) == ("127.0.0.1", 8080)


def test_defaults(tmp_path: Path) -> None:
    """What the contract names and an operator may leave out has a default."""
    settings = yaml.safe_load(CONTRACT)
    for key in ("admin", "workers", "limits"):
        del settings[key]
    del settings["listeners"][0]["tls"]
    del settings["hsm"]["sign_timeout"]
    del settings["hsm"]["verify_signatures"]
    config = load(write(tmp_path, yaml.safe_dump(settings)))
    whole = load(write(tmp_path, CONTRACT))
    assert config == whole


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("[::1]:8443", Address("::1", 8443)),
        ("proxy.example:65535", Address("proxy.example", 65535)),
        ("0.0.0.0:443", Address("0.0.0.0", 443)),
    ],
)
def test_addresses(tmp_path: Path, text: str, address: Address) -> None:
    """host:port and [v6]:port, and back again."""
    config = load(write(tmp_path, CONTRACT.replace("127.0.0.1:8443", f'"{text}"')))
    assert config.listeners[0].address == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "8443", "localhost", ":8443", "::1:8443", "[::1]", "a b:1", "h:-1"])
def test_bad_addresses(tmp_path: Path, text: str) -> None:
    """Each is told with its key and with how an address is written."""
    (line,) = spoil(tmp_path, "listeners.0.address", text)
    assert line == f"listeners[0].address: {text!r} is not an address; write host:port, or [v6]:port"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("5s", 5), ("1h", 3600), ("1.5s", 1.5), ("2m", 120), ("500us", 0.0005)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    """A number with a unit."""
    config = load(write(tmp_path, CONTRACT.replace("sign_timeout: 5s", f"sign_timeout: {text}")))
    assert config.hsm.sign_timeout == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["5", 5, "s", "5 s", "-5s", "5x", [5], True])
def test_bad_durations(tmp_path: Path, value: Any) -> None:
    """Without a unit it is not clear what was meant, so it is refused, with examples."""
    (line,) = spoil(tmp_path, "limits.handshake_timeout", value)
    assert line.startswith("limits.handshake_timeout: ")
    assert "write one like 250ms, 5s, 10m, 1h, 1d or 1y" in line


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("workrs", 2, "workrs: unknown key; did you mean 'workers'?"),
        ("xyzzy", 2, "xyzzy: unknown key; remove it"),
        ("limits.max_conections", 2, "limits.max_conections: unknown key; did you mean 'max_connections'?"),
        ("listeners.0.adress", "x", "listeners[0].adress: unknown key; did you mean 'address'?"),
        ("listeners.0.tls.polcy", "x", "listeners[0].tls.polcy: unknown key; did you mean 'policy'?"),
        ("hsm.nodes.1.tls.certificat", "x", "hsm.nodes[1].tls.certificat: unknown key; did you mean 'certificate'?"),
        ("listeners", None, "listeners: required, but missing"),
        ("hsm", None, "hsm: required, but missing"),
        ("listeners.0.name", None, "listeners[0].name: required, but missing"),
        ("listeners.0.upstream", None, "listeners[0].upstream: required, but missing"),
        ("listeners.0.certificates", None, "listeners[0].certificates: required, but missing"),
        ("hsm.nodes.1.tls.ca", None, "hsm.nodes[1].tls.ca: required, but missing"),
        ("listeners", [], "listeners: "),
        ("hsm.nodes", [], "hsm.nodes: "),
        ("hsm.nodes.1.tls", None, "hsm.nodes[1]: tls goes with tls:// addresses, and only with them"),
        ("hsm.nodes.0.address", "/run/a.sock", "hsm.nodes[0].address: '/run/a.sock' is not a node's address; write"),
        ("hsm.nodes.0.address", "unix:", "hsm.nodes[0].address: socket path"),
        ("hsm.nodes.0.address", "unix:/" + "x" * 107, "hsm.nodes[0].address: socket path"),
        ("hsm.verify_signatures", "never", "hsm.verify_signatures: "),
        ("limits.max_connections", 0, "limits.max_connections: "),
        ("limits.handshake_timeout", "0s", "limits.handshake_timeout: "),
        ("listeners.0.name", "a b", "listeners[0].name: "),
        ("listeners.0.upstream.servers", [], "listeners[0].upstream.servers: "),
        ("listeners.0.upstream.servers", ["web"], "listeners[0].upstream.servers[0].address: 'web' is not an address"),
        ("listeners.0.upstream.servers", [8080], "listeners[0].upstream.servers[0].address: 8080 is not an address"),
        ("listeners.0.upstream.servers", [{"address": "a:1", "wieght": 2}], "listeners[0].upstream.servers[0].wieght: unknown key; did you mean 'weight'?"),
        ("listeners.0.upstream.servers", ["a:1", {"address": "a:1"}], "listeners[0].upstream: servers: a:1 stands twice"),
        ("listeners.0.upstream.servers", [{"address": "a:1", "weight": 0}], "listeners[0].upstream.servers[0].weight: "),
        ("listeners.0.upstream.balance", "random", "listeners[0].upstream.balance: "),
        ("listeners.0.upstream.attempts", 0, "listeners[0].upstream.attempts: "),
        ("listeners.0.upstream.health", {"http": {"path": "x"}}, "listeners[0].upstream.health.http.path: "),
        ("listeners.0.upstream.health", {"http": {"host": "a\r\nb"}}, "listeners[0].upstream.health.http.host: "),
        ("listeners.0.upstream.health", {"intervall": 1}, "listeners[0].upstream.health.intervall: unknown key; did you mean 'interval'?"),
    ],
)  # fmt: skip
def test_mistakes_name_key_and_remedy(tmp_path: Path, path: str, value: Any, expected: str) -> None:
    """Unknown keys, missing keys and wrong values: one line each, naming the file and the key."""
    (line,) = spoil(tmp_path, path, value)
    assert line.startswith(expected)


def test_servers_as_addresses_or_with_keys(tmp_path: Path) -> None:
    """Both in one list; what is left out has a default, and checks are off unless asked for."""
    settings = yaml.safe_load(CONTRACT)
    settings["listeners"][0]["upstream"] = {
        "servers": ["a:80", {"address": "unix:web.sock", "weight": 3, "max_connections": 9}],
        "balance": "source_hash",
    }
    upstream = load(write(tmp_path, yaml.safe_dump(settings))).listeners[0].upstream
    assert isinstance(upstream, UpstreamSettings)
    first, second = upstream.servers
    assert (first.address, first.weight, first.max_connections) == (Address("a", 80), 1, None)
    assert (second.address, second.weight, second.max_connections) == (
        Address(path=f"{tmp_path}/web.sock"),
        3,
        9,
    )
    assert (upstream.balance, upstream.health, upstream.attempts) == ("source_hash", None, 3)


def test_names_and_addresses_stand_once(tmp_path: Path) -> None:
    """Two listeners of one name or on one port are a mistake; on port 0 there can be many."""
    settings = yaml.safe_load(CONTRACT)
    first = settings["listeners"][0]
    for second, words in (
        ({**first, "address": "127.0.0.1:8444"}, "listeners: 'web' stands twice"),
        ({**first, "name": "other"}, "'127.0.0.1:8443' stands twice"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load(write(tmp_path, yaml.safe_dump({**settings, "listeners": [first, second]})))
    free = [{**first, "name": name, "address": "127.0.0.1:0"} for name in ("x", "y")]
    assert len(load(write(tmp_path, yaml.safe_dump({**settings, "listeners": free}))).listeners) == 2
    settings["hsm"]["nodes"][1]["name"] = "a"
    with pytest.raises(ConfigurationError, match="'a' stands twice"):
        load(write(tmp_path, yaml.safe_dump(settings)))


def test_every_mistake_has_its_line(tmp_path: Path) -> None:
    """All that is wrong is told at once."""
    settings = yaml.safe_load(CONTRACT)
    settings["workers"] = "many"
    settings["listeners"][0]["address"] = "x"
    settings["limits"]["unknown"] = 1
    with pytest.raises(ConfigurationError) as caught:
        load(write(tmp_path, yaml.safe_dump(settings)))
    lines = str(caught.value).splitlines()
    assert {"listeners[0].address", "limits.unknown"} <= {line.split(": ")[1] for line in lines}
    assert any("workers" in line for line in lines)


@pytest.mark.parametrize("text", ["", "- 1\n", "42\n", "a: [\n", "a: b: c\n", "\x00"])
def test_what_is_no_configuration(tmp_path: Path, text: str) -> None:
    """Any other file is told in one line, with the line number where YAML knows it."""
    with pytest.raises(ConfigurationError) as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "offload.yaml") in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and one in another encoding are told by name."""
    (tmp_path / "latin1.yaml").write_bytes(b"name: caf\xe9\n")
    for name in ("none.yaml", ".", "latin1.yaml"):
        with pytest.raises(ConfigurationError, match=str(tmp_path)):
            load(tmp_path / name)


def test_planning_tells_every_bad_listener(identities: Identities, tmp_path: Path) -> None:
    """A policy that s2n does not know, and a host that does not resolve: both at once, each with its key."""
    settings = yaml.safe_load(CONTRACT)
    first = settings["listeners"][0]
    first["certificates"] = [{"chain": str(identities["p256"].chain_path)}]
    second = {**first, "name": "two", "address": "127.0.0.1:8444", "tls": {"policy": "nonsense"}}
    first["upstream"] = {"servers": ["no-such-host.invalid:80"]}
    config = load(write(tmp_path, yaml.safe_dump({**settings, "listeners": [first, second]})))
    with pytest.raises(ConfigurationError) as caught:
        plan_service(config)
    unresolved, unknown = str(caught.value).splitlines()
    assert unresolved.startswith("listeners[0].upstream.servers[0]: cannot resolve 'no-such-host.invalid'")
    assert unknown.startswith("listeners[1].tls.policy: s2n-tls has no policy 'nonsense'; try default")


def test_the_configuration_is_frozen(tmp_path: Path) -> None:
    """Nobody changes it behind the back of the others."""
    config = load(write(tmp_path, CONTRACT))
    assert isinstance(config, Config)
    with pytest.raises(ValueError, match="frozen"):
        config.workers = 3  # type: ignore[misc]  # that is the point
