"""HTTP mode between the clients and the application servers that people use."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from websockets.sync.client import connect

from tests.integration.clients import TIMEOUT
from tests.integration.upstreams import pattern
from tests.integration.web_applications import CHUNK, CHUNKS
from tests.offload.identities import Identities
from tests.support import eventually
from tests.support.chromium import Chromium
from tests.support.hsm_support import ROOT, child_environment, require
from tests.support.proxy import Proxy, listener, running_proxy

SERVERS = {
    "gunicorn": ["gunicorn", "--workers=1", "--threads=4", "--bind=unix:{path}", "tests.integration.web_applications:wsgi"],
    "uvicorn": ["uvicorn", "--uds={path}", "--lifespan=off", "tests.integration.web_applications:asgi"],
}  # fmt: skip


@contextlib.contextmanager
def _application(name: str, directory: Path) -> Iterator[str]:
    path = directory / f"{name}.sock"
    command = [sys.executable, "-m", *(part.format(path=path) for part in SERVERS[name])]
    with (directory / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=child_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            eventually(lambda: process.poll() is not None or path.exists(), f"{name} listens", TIMEOUT)
            assert process.poll() is None, (directory / f"{name}.log").read_text()
            yield f"unix:{path}"
        finally:
            process.terminate()
            process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def web(identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A listener before each application server."""
    chains = [identities["p256"].chain_path]
    with tempfile.TemporaryDirectory(prefix="offload-test-") as short, contextlib.ExitStack() as stack:
        addresses = {name: stack.enter_context(_application(name, Path(short))) for name in SERVERS}
        settings = {
            "listeners": [
                listener(name, chains, [address]) | {"mode": "http"} for name, address in addresses.items()
            ],
            "hsm": {"nodes": [{"name": "local", "run": {"keys": str(identities.keys)}}]},
            "workers": 1,
        }
        with running_proxy(tmp_path_factory.mktemp("applications"), settings) as proxy:
            yield proxy
            proxy.assert_clean()


@pytest.mark.parametrize("name", SERVERS)
def test_many_requests_of_an_asynchronous_client(web: Proxy, name: str, tls13: ssl.SSLContext) -> None:
    """Bodies of all sizes, counted and chunked, each answered to its own request, over kept connections."""
    url = f"https://localhost:{web.ports[name]}"

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        body = pattern(number**4 % 300_000)
        chunked = number % 3 == 0
        async with session.post(f"{url}/echo?n={number}", data=body, chunked=chunked or None) as answer:
            told = await answer.json()
        assert (told["method"], told["query"], told["size"]) == ("POST", f"n={number}", len(body))
        assert told["sha256"] == hashlib.sha256(body).hexdigest()
        assert told["headers"]["x-forwarded-proto"] == "https"
        assert told["headers"]["x-forwarded-for"] == "127.0.0.1"
        async with session.get(f"{url}/stream") as answer:
            assert await answer.read() == CHUNK * CHUNKS

    async def all_of_them() -> None:
        limit = aiohttp.TCPConnector(ssl=tls13, limit=8)
        async with aiohttp.ClientSession(connector=limit) as session:
            await asyncio.gather(*(one(session, number) for number in range(40)))

    asyncio.run(all_of_them())


def test_websocket(web: Proxy, tls13: ssl.SSLContext) -> None:
    """Frames of 10 MB and of a few bytes come back as they went, then both sides close in order."""
    frame = pattern(10_000_000)
    with connect(f"wss://localhost:{web.ports['uvicorn']}/socket", ssl=tls13, max_size=None) as socket:
        for _ in range(2):
            socket.send(frame)
            assert socket.recv(TIMEOUT) == frame
            socket.send("short")
            assert socket.recv(TIMEOUT) == "short"
        socket.ping().wait(TIMEOUT)
    assert socket.close_code == 1000


def test_wrk(web: Proxy) -> None:
    """A load tool's keep-alive connections: no error of any kind."""
    url = f"https://localhost:{web.ports['uvicorn']}/echo"
    command = [require("wrk"), "-t1", "-c16", "-d1s", url]
    told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    assert "requests in" in told
    assert "Socket errors" not in told
    assert "Non-2xx" not in told


def test_a_browser(web: Proxy, tmp_path: Path) -> None:
    """Chromium loads a page whose script posts, streams and opens a WebSocket."""
    with Chromium(require("chromium"), tmp_path) as browser:
        browser.call("Security.setIgnoreCertificateErrors", ignore=True)
        browser.open(f"https://localhost:{web.ports['uvicorn']}/")
        told = browser.evaluate("document.body.textContent")
    assert told == f'[100000,"a=b",{CHUNKS * len(CHUNK)},"hello"]'
