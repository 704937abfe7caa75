"""The state of a running proxy as tables on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from hsm.show import nodes_table


def show_status(status: dict[str, Any]) -> None:
    """Print what `/status` says."""
    console = Console()
    state = "draining" if status["draining"] else "ready" if status["ready"] else "NOT ready"
    console.print(f"offload {status['version']}, {status['tls_library']['name']}: {state}", highlight=False)
    for fault in status["degraded"]:
        console.print(f"degraded: {fault}", style="yellow", highlight=False)
    console.print(_confinement(status["workers"]), highlight=False)
    for table in (_listeners(status), _servers(status), _workers(status), nodes_table(status["nodes"])):
        console.print(table)


def _confinement(workers: list[dict[str, Any]]) -> str:
    """What workers are confined by; they differ only while some have just started."""
    known = [words for worker in workers if (words := worker["confined_by"])]
    return (
        f"workers are confined by: {', '.join(known[0]) or 'nothing'}"
        if known
        else "no worker is confined yet"
    )


def _table(*columns: str) -> Table:
    """Nothing is cut: what does not fit goes on in the next line."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _listeners(status: dict[str, Any]) -> Table:
    table = _table("listener", "address", "certificate", "expires", "key on")
    for listener in status["listeners"]:
        for certificate in listener["certificates"]:
            table.add_row(
                listener["name"],
                listener["address"],
                ", ".join(certificate["names"]) or certificate["subject"],
                certificate["not_after"][:10],
                ", ".join(certificate["nodes"]) or "NONE",
            )
        if not listener["certificates"]:
            table.add_row(listener["name"], listener["address"], "no TLS", "", "")
    return table


def _servers(status: dict[str, Any]) -> Table:
    """The web servers of all groups; a group that several listeners use stands there once."""
    table = _table("upstream", "server", "state", "connections", "why")
    servers = {
        (server["upstream"], server["server"]): server
        for listener in status["listeners"]
        for server in listener["upstream"]
    }
    for (group, address), server in servers.items():
        state = server["state"] if server["state"] == "up" else server["state"].upper()
        table.add_row(group, address, state, str(server["connections"]), server["why"])
    return table


def _workers(status: dict[str, Any]) -> Table:
    table = _table("worker", "pid", "state", "serves slots", "connections", "restarts")
    for worker in status["workers"]:
        table.add_row(
            str(worker["slot"]),
            str(worker["pid"] or "-"),
            "accepting" if worker["accepting"] else "absent",
            ", ".join(map(str, worker["slots"])),
            str(sum(worker["connections"].values())),
            str(worker["restarts"]),
        )
    return table
