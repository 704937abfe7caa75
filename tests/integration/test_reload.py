"""A running proxy takes over a changed configuration, or refuses it and goes on as before."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from hsm.errors import ConfigurationError
from tests.integration.clients import TIMEOUT, Load, TlsClient, client_context, connect_tcp, request_bytes
from tests.integration.upstreams import Upstream, unique
from tests.offload.identities import Identities, Identity
from tests.support import eventually
from tests.support.hsm_support import NodeProcess, free_port
from tests.support.proxy import Proxy, is_running, listener, run_offload, running_proxy


@dataclass
class Site:
    """A proxy with two workers whose configuration a test may change."""

    proxy: Proxy
    identities: Identities
    identity: Identity
    upstream: Upstream
    chain: Path
    """What the listener `web` serves; its key is `identity`'s."""
    context: ssl.SSLContext
    base: dict[str, Any] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Of the listener `web`."""
        return self.proxy.ports["web"]

    def reload(self, **changes: Any) -> str:
        """Write the configuration with these sections changed, and have it taken over."""
        self.proxy.write({**self.base, **changes})
        return self.proxy.command("reload")

    def refused(self, **changes: Any) -> str:
        """Why this configuration is not taken over."""
        with pytest.raises(ConfigurationError) as caught:
            self.reload(**changes)
        return str(caught.value)

    def renew(self) -> int:
        """Put a new certificate for the same key into the chain's file; its serial number."""
        new = self.chain.with_suffix(".new")
        new.write_bytes(self.identities.renewed(self.identity))
        new.replace(self.chain)  # half a file would be refused
        return serial_of(self.chain.read_bytes())

    def load(self) -> Load:
        """Connections one after the other, none of which may fail."""
        return Load(self.port, self.context, threads=3)

    def web(self, **more: Any) -> dict[str, Any]:
        """The listener."""
        return {**listener("web", [self.chain], [self.upstream.address]), **more}

    def serials(self, port: int = 0, count: int = 12) -> set[int]:
        """The serial numbers of the certificates that so many new connections see, by whichever worker."""
        return {served(port or self.port, self.context) for _ in range(count)}


def serial_of(pem: bytes) -> int:
    """The serial number of a chain's leaf."""
    return x509.load_pem_x509_certificates(pem)[0].serial_number


def served(port: int, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection sees."""
    with TlsClient.connect(port, context) as client:
        found = client.tls.getpeercert(binary_form=True)
        assert found is not None
        client.close_notify()
        return x509.load_der_x509_certificate(found).serial_number


@pytest.fixture(scope="module")
def lasting(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The proxy of all tests of this module that leave it running."""
    directory = tmp_path_factory.mktemp("reload")
    identities = Identities(directory)
    identity = identities["p256"]
    chain = directory / "web.pem"
    chain.write_bytes(identity.pem)
    base = {
        "listeners": [listener("web", [chain], [upstream.address])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 2,
        "watch_files": False,
        "limits": {"heartbeat_timeout": "1s", "drain_timeout": "10s"},
    }
    with running_proxy(directory / "proxy", base) as proxy:
        yield Site(proxy, identities, identity, upstream, chain, client_context(identities.ca), base)


@pytest.fixture
def site(lasting: Site) -> Iterator[Site]:
    """The lasting proxy, with the configuration that it began with before and after."""
    yield lasting
    lasting.upstream.release.clear()
    lasting.chain.write_bytes(lasting.identity.pem)
    lasting.reload()
    eventually(lambda: len(accepting(lasting.proxy)) == 2, "two workers")
    lasting.proxy.wait_idle()
    lasting.proxy.assert_clean()


def accepting(proxy: Proxy) -> dict[int, int]:
    """The pids of the workers that accept, by slot."""
    return {worker["slot"]: worker["pid"] for worker in proxy.status()["workers"] if worker["accepting"]}


def reloads(proxy: Proxy, result: str) -> float:
    """How many reloads had this result."""
    return proxy.metrics().value("offload_reloads_total", result=result)


def test_new_certificate_is_served_by_all_at_once(site: Site) -> None:
    """When the command answers, no worker serves the old one any more, and no connection was lost."""
    done = reloads(site.proxy, "done")
    with site.load() as load:
        load.wait_done(20)
        serial = site.renew()
        said = site.reload()
        assert site.serials() == {serial}
        load.wait_done(20)
    assert load.failed == []
    assert f"listener web: certificate of localhost, serial {serial:x}" in said
    assert reloads(site.proxy, "done") == done + 1
    assert site.proxy.status()["reload"]["result"] == "done"


def test_open_connections_go_on(site: Site) -> None:
    """A request that is under way during a reload is answered, and its connection serves further ones."""
    path = unique("/held")
    with TlsClient.connect(site.port, site.context) as client:
        client.send(request_bytes("GET", path))
        site.upstream.wait_for(path)
        site.renew()
        site.reload()
        site.upstream.release.set()
        assert client.response().body == b"released"
        assert client.get("/").status == 200


def test_command_line(site: Site) -> None:
    """`offload reload` prints what changed, or that nothing did, or what is wrong with exit code 2, and it counts."""
    site.proxy.write(site.base)
    arguments = ("reload", "--config", str(site.proxy.config))
    same = run_offload(*arguments)
    assert (same.returncode, same.stdout) == (0, "nothing has changed\n")
    site.chain.write_bytes(b"no certificate")
    refused = run_offload(*arguments)
    assert refused.returncode == 2
    assert f"{site.chain}: holds no valid PEM certificates" in refused.stderr
    count = reloads(site.proxy, "refused")
    site.proxy.config.write_text("listeners: [")
    unreadable = run_offload(*arguments)
    assert unreadable.returncode == 2
    assert unreadable.stderr.startswith(f"error: {site.proxy.config}:1: not valid YAML: ")
    assert reloads(site.proxy, "refused") == count + 1


def cut(site: Site, size: int) -> dict[str, Any]:
    """Leave only the beginning of the chain's file."""
    site.chain.write_bytes(site.identity.pem[:size])
    return {}


def _other_key(site: Site) -> dict[str, Any]:
    stranger = site.identities.issue("p256", keys=site.identities.directory)
    site.chain.write_bytes(stranger.pem)
    return {}


def _occupied(site: Site) -> dict[str, Any]:
    return {"listeners": [site.web(), site.web(name="other", address=site.upstream.address)]}


REFUSALS: dict[str, tuple[Callable[[Site], dict[str, Any]], str]] = {
    "half a leaf": (lambda site: cut(site, 300), "no valid PEM"),
    "half a chain": (lambda site: cut(site, 900), "cut off"),
    "no chain": (lambda site: {"listeners": [listener("web", [site.chain.with_name("x")], ["127.0.0.1:1"])]},
                 "cannot read the certificate chain"),
    "key on no node": (_other_key, "no ready node holds its key"),
    "occupied port": (_occupied, "listeners[1].address: cannot listen on"),
    "unknown key": (lambda site: {"wrokers": 1}, "did you mean 'workers'?"),
    "unknown policy": (lambda site: {"listeners": [site.web(tls={"policy": "modern"})]}, "has no policy 'modern'"),
    "admin": (lambda site: {"admin": None}, "admin: can't change while the proxy runs"),
    "runtime directory": (lambda site: {"runtime_directory": "/tmp/elsewhere"},
                          "runtime_directory: can't change"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_wrong_changes_nothing(site: Site, case: str) -> None:
    """The command says why; it is counted and shown; the old certificate is served on by both workers."""
    before, refused = site.serials(), reloads(site.proxy, "refused")
    generation = site.proxy.status()["generation"]
    make, expected = REFUSALS[case]
    with site.load() as load:
        error = site.refused(**make(site))
        load.wait_done(10)
    assert expected in error
    assert load.failed == []
    assert site.serials() == before
    status = site.proxy.status()
    assert (status["generation"], status["reload"]["result"]) == (generation, "refused")
    assert status["reload"]["lines"] == error.splitlines()
    assert reloads(site.proxy, "refused") == refused + 1


def test_a_worker_that_cannot_follow_stops_it_for_all(site: Site) -> None:
    """With one worker stuck nobody changes; once it is replaced, the reload goes through."""
    before = served(site.port, site.context)
    stuck = accepting(site.proxy)[1]
    serial = site.renew()
    os.kill(stuck, signal.SIGSTOP)
    assert "worker-1 can't take it over" in site.refused()
    assert site.serials() == {before}
    eventually(lambda: accepting(site.proxy).get(1) not in (None, stuck), "a new worker")
    assert site.serials() == {before}
    site.proxy.command("reload")
    assert site.serials() == {serial}


def test_listeners_come_and_go(site: Site) -> None:
    """A new one accepts when the command answers; a removed one refuses, but what it accepted goes on."""
    with free_port() as port, site.load() as load:
        added = site.web(name="added", address=f"127.0.0.1:{port}")
        assert f"listener added added on 127.0.0.1:{port}" in site.reload(listeners=[site.web(), added])
        with TlsClient.connect(port, site.context) as client:
            assert client.get("/").status == 200
            assert "listener added removed" in site.reload()
            with pytest.raises(ConnectionRefusedError):
                connect_tcp(port).close()
            assert client.get("/").status == 200
        load.wait_done(10)
    assert load.failed == []


def test_renamed_listener_keeps_its_sockets(site: Site) -> None:
    """An address that stays under another name is not closed for a moment."""
    with free_port() as port:
        address = f"127.0.0.1:{port}"
        site.reload(listeners=[site.web(), site.web(name="one", address=address)])
        with Load(port, site.context, threads=2) as load:
            load.wait_done(10)
            site.reload(listeners=[site.web(name="two", address=address), site.web()])
            load.wait_done(10)
        assert load.failed == []


def test_upstream_changes(site: Site) -> None:
    """New connections go to the new server, and no request is lost."""
    with Upstream() as other, site.load() as load:
        load.wait_done(5)
        said = site.reload(listeners=[site.web(upstream={"servers": [other.address]})])
        assert "listener web: upstream changed" in said
        path = unique("/")
        with TlsClient.connect(site.port, site.context) as client:
            assert client.get(path).status == 200
        other.wait_for(path)
        load.wait_done(10)
        site.reload()
    assert load.failed == []


def test_named_upstreams_change(site: Site) -> None:
    """A listener follows the name that it is told, and the group what the name stands for; nothing is lost."""
    web = site.web(upstream="site")
    with Upstream() as other, site.load() as load:
        load.wait_done(5)
        ours, theirs = ({"site": {"servers": [each.address]}} for each in (site.upstream, other))
        said = site.reload(listeners=[web], upstreams=ours)
        assert "listener web: upstream changed" in said
        assert "upstream site added" in said
        said = site.reload(listeners=[web], upstreams=theirs)
        assert "upstream site changed" in said
        assert "listener" not in said
        path = unique("/")
        with TlsClient.connect(site.port, site.context) as client:
            assert client.get(path).status == 200
        other.wait_for(path)
        assert "there is no group 'site'" in site.refused(listeners=[web])
        site.reload()
        load.wait_done(10)
    assert load.failed == []


def test_local_nodes_come_and_go(site: Site) -> None:
    """Added, changed, removed: a new one is ready before the old one goes, and no handshake fails."""
    a = site.base["hsm"]["nodes"][0]
    b = {"name": "b", "run": {**a["run"], "emulate": {"latency": "1ms"}}}
    c = {"name": "b", "run": {**a["run"], "emulate": {"latency": "2ms"}}}
    with site.load() as load:
        for nodes, said in ([a, b], "node b added"), ([a, c], "node b changed"), ([c], "node a removed"):
            assert said in site.reload(hsm={"nodes": nodes})
            load.wait_done(20)
        assert {node["name"] for node in site.proxy.status()["nodes"]} == {"b"}
        site.reload()
        load.wait_done(20)
    assert load.failed == []


def test_new_key_of_a_local_node(site: Site) -> None:
    """A key file put beside the others is found by the reload that brings its certificate."""
    fresh = site.identities.issue("p256", keys=site.identities.keys)
    with site.load() as load:
        site.reload(listeners=[listener("web", [fresh.chain_path], [site.upstream.address])])
        assert site.serials() == {serial_of(fresh.pem)}
        load.wait_done(10)
    assert load.failed == []


def test_local_node_that_does_not_start(site: Site) -> None:
    """A new node that never gets ready is told, stopped, and nothing has changed."""
    broken = {"name": "broken", "run": {"token": "pkcs11", "module": "/dev/null", "label": "x"}}
    error = site.refused(hsm={"nodes": [*site.base["hsm"]["nodes"], broken]})
    assert "/dev/null" in error
    assert {node["name"] for node in site.proxy.status()["nodes"]} == {"a"}


def test_workers_come_and_go(site: Site) -> None:
    """More, fewer, and more workers than before, while connections are made: none is lost or waits long."""
    with site.load() as load:
        for count in (4, 1, 3):
            assert "workers: " in site.reload(workers=count)
            eventually(lambda count=count: len(accepting(site.proxy)) == count, f"{count} workers")  # type: ignore[misc]
            load.wait_done(30)
    assert load.failed == []
    assert max(attempt.seconds for attempt in load.attempts) < TIMEOUT / 2


def test_signals_in_a_storm(site: Site) -> None:
    """A thousand SIGHUPs come to a few reloads, the last of which saw the last change."""
    refused = reloads(site.proxy, "refused")
    with site.load() as load:
        for _ in range(500):
            site.proxy.signal(signal.SIGHUP)
        serial = site.renew()
        for _ in range(500):
            site.proxy.signal(signal.SIGHUP)
        eventually(lambda: site.serials(count=4) == {serial}, "the new certificate")
        load.wait_done(10)
    assert load.failed == []
    assert reloads(site.proxy, "refused") == refused
    done = site.proxy.metrics().value("offload_reloads_total")
    assert done < 500


def test_worker_that_dies_during_reloads(site: Site) -> None:
    """Whatever moment its end comes at: all workers serve what the last reload said."""
    for delay in (0.0, 0.01, 0.03):
        serial = site.renew()
        pid = accepting(site.proxy)[0]
        killer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with contextlib.suppress(ConfigurationError):
            site.reload()
        killer.join()
        eventually(lambda pid=pid: accepting(site.proxy).get(0) not in (None, pid), "another worker")  # type: ignore[misc]
        site.proxy.command("reload")
        assert site.serials() == {serial}


@pytest.fixture
def watched(upstream: Upstream, tmp_path: Path) -> Iterator[Site]:
    """A proxy that watches its files; the chain is in a directory as Kubernetes mounts a Secret."""
    identities = Identities(tmp_path)
    identity = identities["p256"]
    mount = tmp_path / "mount"
    mount.mkdir()
    swap(mount, identity.pem)
    (mount / "tls.crt").symlink_to("..data/tls.crt")
    base = {
        "listeners": [listener("web", [mount / "tls.crt"], [upstream.address])],
        "hsm": {"nodes": [{"name": "a", "run": {"keys": str(identities.keys)}}]},
        "workers": 1,
    }
    context = client_context(identities.ca)
    with running_proxy(tmp_path / "proxy", base) as proxy:
        yield Site(proxy, identities, identity, upstream, mount / "tls.crt", context, base)


def swap(mount: Path, pem: bytes) -> None:
    """What the kubelet does: a new directory, and the link `..data` moved onto it."""
    directory = mount / f"..{len(list(mount.iterdir()))}"
    directory.mkdir()
    (directory / "tls.crt").write_bytes(pem)
    (mount / "..new").symlink_to(directory.name)
    (mount / "..new").replace(mount / "..data")


def test_watched_files(watched: Site) -> None:
    """A swapped link is noticed, a broken file refused, a repaired one taken; a touched one is nothing new."""
    pem = watched.identities.renewed(watched.identity)
    mount = watched.chain.parent
    swap(mount, pem)
    eventually(lambda: served(watched.port, watched.context) == serial_of(pem), "the new certificate")
    half = mount / "..data" / "half"
    half.write_bytes(pem[:500])
    half.replace(mount / "..data" / "tls.crt")
    watched.proxy.wait_event("reload_refused", cause="files")
    assert served(watched.port, watched.context) == serial_of(pem)
    os.utime(mount / "..data" / "tls.crt")
    again = watched.identities.renewed(watched.identity)
    swap(mount, again)
    eventually(lambda: served(watched.port, watched.context) == serial_of(again), "the next certificate")
    watched.proxy.write({**watched.base, "workers": 2})
    eventually(lambda: len(accepting(watched.proxy)) == 2, "the configuration's file is watched too")
    assert len(watched.proxy.events("reload_refused")) == 1
    assert len(watched.proxy.events("reloaded")) == 3


def test_key_that_comes_late(upstream: Upstream, tmp_path: Path) -> None:
    """A certificate is refused whose key no node has; when one has it, that is noticed without another change."""
    identities = Identities(tmp_path)
    identity, stranger = identities["p256"], identities.issue("p256", keys=tmp_path)
    chain = tmp_path / "web.pem"
    chain.write_bytes(identity.pem)
    context = client_context(identities.ca)
    node = partial(NodeProcess, f"unix:{tmp_path}/n.sock", "--name", "n", "--keys", str(identities.keys))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(node()).ready()
        base = {
            "listeners": [listener("web", [chain], [upstream.address])],
            "hsm": {"nodes": [{"name": "n", "address": first.listen}]},
            "workers": 1,
        }
        proxy = stack.enter_context(running_proxy(tmp_path / "proxy", base))
        new = chain.with_suffix(".new")
        new.write_bytes(stranger.pem)
        new.replace(chain)
        proxy.wait_event("reload_refused", cause="files")
        stranger.key_path.rename(identities.keys / stranger.key_path.name)
        first.signal(signal.SIGTERM)
        first.wait()
        stack.enter_context(node()).ready()
        proxy.wait_event("reloaded", cause="retry")
        assert served(proxy.ports["web"], context) == serial_of(stranger.pem)


def test_sigterm_during_a_reload(watched: Site) -> None:
    """Told to end while it looks for a key that nobody has, it ends in order and leaves nothing."""
    stranger = watched.identities.issue("p256", keys=watched.identities.directory)
    pids = accepting(watched.proxy).values()
    swap(watched.chain.parent, stranger.pem)
    watched.proxy.signal(signal.SIGHUP)
    watched.proxy.wait_event("reloading")
    watched.proxy.signal(signal.SIGINT)
    assert watched.proxy.wait() == 0
    assert not any(is_running(pid) for pid in pids)
