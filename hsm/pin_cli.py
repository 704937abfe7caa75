"""`hsm pin`: what an operator does about a PIN that a token has refused."""

from __future__ import annotations

from typing import Annotated

import typer

from hsm.terminal import fail

app = typer.Typer(help="The guard that keeps a wrong PIN from locking a token.", no_args_is_help=True)


@app.command()
def guards() -> None:
    """List the tokens that nodes of this user have logged in to, and how many PINs are held back for each."""
    from hsm.node.pin import guards as read_guards
    from hsm.node.pin import state_directory

    for state in read_guards(state_directory()):
        print(f"{state.token}: {state.refused} held back ({state.path})")


@app.command()
def reset_guard(
    token: Annotated[str, typer.Option(help="Only tokens whose name holds this (see: hsm pin guards).")] = "",
) -> None:
    """Let refused PINs be tried again, once each. Run it as the nodes' user, when the PIN is right now."""
    from hsm.node.pin import reset_guards, state_directory

    directory = state_directory()
    try:
        reset = reset_guards(directory, token)
    except OSError as error:
        raise fail(f"{error.filename}: cannot reset it: {error.strerror}") from error
    for state in reset:
        print(f"{state.token}: {state.refused} set free")
    if not reset:
        print(f"nothing was held back in {directory}/pin-guard")
