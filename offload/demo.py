"""`offload demo`: key, certificate, two nodes, an upstream page and the proxy, on one machine."""

from __future__ import annotations

import contextlib
import html
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding

from hsm import keygen, logs
from hsm.config import Address, validate
from hsm.errors import ConfigurationError
from hsm.transport import listen_tcp
from offload.config import Config
from offload.supervisor import Supervisor

VALID_DAYS = 30

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Offload demo</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}}
pre{{background:#f4f4f4;padding:1rem;overflow:auto}}</style>
<h1>It works</h1>
<p>You reached a plain HTTP server. TLS ended in the proxy, and the signature of your handshake
was made by a node process: the proxy never had the key.</p>
<p>What the server received:</p>
<pre>{request}</pre>
<p><a href="{metrics}">Metrics of the proxy</a></p>
</html>
"""


def run_demo(port: int, admin_port: int, directory: Path | None) -> None:
    """Run until Ctrl-C. Raises ConfigurationError, for an occupied port say."""
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offload-demo-")))
        uvloop.run(_run(directory, port, admin_port))


async def _run(directory: Path, port: int, admin_port: int) -> None:
    chain = make_identity(directory)
    async with _upstream_page(admin_port) as page:
        keys = str(directory / "keys")
        settings = {
            "listeners": [
                {
                    "name": "demo",
                    "address": f"127.0.0.1:{port}",
                    "certificates": [{"chain": str(chain)}],
                    "upstream": {"servers": [str(page)]},
                }
            ],
            "hsm": {
                "nodes": [
                    {"name": name, "run": {"token": "software", "keys": keys, "emulate": {"latency": "2ms"}}}
                    for name in ("a", "b")
                ]
            },
            "admin": {"address": f"127.0.0.1:{admin_port}"},
            "workers": 1,
            "runtime_directory": str(directory / "run"),
            "limits": {"drain_timeout": "1s"},
        }
        config = validate(settings, Config, "offload demo", directory)
        supervisor = Supervisor(config, directory / "demo.yaml", logs.configure("demo"))
        supervisor.on_ready = lambda: _greet(port, admin_port, chain)
        await supervisor.run()
    print("demo ended")


def _greet(port: int, admin_port: int, chain: Path) -> None:
    print(
        f"""
  page      https://localhost:{port}/   (the browser will warn: the certificate is self-signed)
  with curl curl --cacert {chain} https://localhost:{port}/
  metrics   http://127.0.0.1:{admin_port}/metrics
  state     http://127.0.0.1:{admin_port}/status

  Ctrl-C ends everything.
""",
        flush=True,
    )


def make_identity(directory: Path) -> Path:
    """A key in `directory`/keys and a self-signed certificate for localhost; the chain's path.

    What an earlier run left there is used again. Raises ConfigurationError.
    """
    key_path, chain_path = directory / "keys" / "localhost.key", directory / "localhost.pem"
    try:
        key_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (key_path.exists() and chain_path.exists()):
            key = keygen.make_key("p256")
            key_path.unlink(missing_ok=True)
            chain_path.unlink(missing_ok=True)
            keygen.write_key(key_path, key)
            certificate = keygen.self_signed(key, ["localhost"], VALID_DAYS)
            keygen.write_new(chain_path, certificate.public_bytes(Encoding.PEM), 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or directory}: cannot keep the demo's state there: {error.strerror}; "
            "choose another with --directory"
        ) from error
    return chain_path


@contextlib.asynccontextmanager
async def _upstream_page(admin_port: int) -> AsyncIterator[Address]:
    """A web server on a free port that shows what it received."""

    async def show(request: web.Request) -> web.Response:
        lines = [f"{request.method} {request.path_qs} HTTP/{request.version[0]}.{request.version[1]}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        text = "\n".join(lines)
        if "text/html" not in request.headers.get("Accept", ""):
            return web.Response(text=f"It works. The upstream received:\n\n{text}\n")
        page = _PAGE.format(request=html.escape(text), metrics=f"http://127.0.0.1:{admin_port}/metrics")
        return web.Response(text=page, content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", show)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = listen_tcp(Address("127.0.0.1", 0), "the demo's page")
    await web.SockSite(runner, sock).start()
    try:
        yield Address(*sock.getsockname())
    finally:
        await runner.cleanup()
