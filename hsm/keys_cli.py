"""`hsm keys list`: what a node, a PKCS#11 token or a directory of key files holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hsm import options
from hsm.errors import ConfigurationError
from hsm.terminal import fail

if TYPE_CHECKING:
    from hsm.inventory import KeyDetails


class _ListByDefault(TyperGroup):
    """`hsm keys --node …` is `hsm keys list --node …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """click: put the command in if there is none."""
        if args and args[0].startswith("--") and args[0] != "--help":
            args.insert(0, "list")
        return super().parse_args(ctx, args)


app = typer.Typer(help="The keys of a node or a token.", no_args_is_help=True, cls=_ListByDefault)


@app.callback()
def _main() -> None:
    """The keys of a node or a token."""


@app.command("list")
def list_keys(
    node: options.OneNode = None,
    token_uri: options.TokenUri = None,
    keys: Annotated[Path | None, typer.Option(help="A directory of PEM private keys.")] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="With --keys: file with the passphrase of encrypted keys.")
    ] = None,
    as_json: options.Json = False,
    tls_ca: options.Ca = None,
    tls_certificate: options.Certificate = None,
    tls_key: options.Key = None,
    tls_server_name: options.ServerName = None,
) -> None:
    """Show each key's SKI, type, label, whether it can be extracted, and what it can do."""
    link = options.Link(tls_ca, tls_certificate, tls_key, tls_server_name)
    try:
        options.only("node", "token_uri", "keys", node=node, token_uri=token_uri, keys=keys)
        problems: Sequence[str] = ()
        if node is not None:
            held = asyncio.run(_of_node(link.target(node)))
        elif token_uri is not None:
            held, problems = _of_token(token_uri)
        else:
            assert keys is not None
            held = _of_files(keys, passphrase_file)
    except ConfigurationError as error:
        raise fail(error) from error
    for problem in problems:
        options.warn(f"not offered: {problem}")
    if as_json:
        print(json.dumps([key.as_json() for key in held], indent=2))
        return
    for key in held:
        print(_line(key))


def _line(key: KeyDetails) -> str:
    from hsm.signing import scheme_names

    extractable = {None: "", True: "extractable", False: "not extractable"}[key.is_extractable]
    parts = (key.ski.hex(), key.kind, extractable, key.shown_label, scheme_names(key.opcodes))
    return "  ".join(filter(None, parts))


async def _of_node(target: options.NodeTarget) -> list[KeyDetails]:
    from hsm.connect import connect, key_details

    cluster = await connect(target, "never")
    try:
        return await key_details(cluster)
    finally:
        await cluster.close()


def _of_token(uri: str) -> tuple[list[KeyDetails], Sequence[str]]:
    from hsm.node.ckr import CryptokiError

    with options.open_token(options.token_settings(uri), "keys") as token:
        try:
            found = token.keys()
        except CryptokiError as error:
            raise ConfigurationError(f"token {token.info.label!r}: can't read its keys: {error}") from error
    return [key.details() for _, key in sorted(found.keys.items())], found.problems


def _of_files(directory: Path, passphrase_file: Path | None) -> list[KeyDetails]:
    from hsm.node.software import SoftwareToken, load_keys

    return SoftwareToken(load_keys(directory, passphrase_file)).details()
