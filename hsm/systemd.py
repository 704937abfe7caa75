"""Tells a service manager how the process fares: sd_notify(3), one datagram each. Without one it does nothing."""

from __future__ import annotations

import os
import socket
import time


def notify(**assignments: str | int) -> None:
    """Send `KEY=value` lines to $NOTIFY_SOCKET; one that nobody takes is lost."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    message = "\n".join(f"{key}={value}" for key, value in assignments.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(message.encode(), "\0" + path[1:] if path.startswith("@") else path)
        except OSError:  # the manager is gone, or does not read: no reason to stop serving
            pass


def ready(status: str) -> None:
    """Serving, from the start or again after a reload."""
    notify(READY=1, STATUS=status)


def reloading() -> None:
    """A reload begins; `ready` follows, however it ends (Type=notify-reload)."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def stopping(status: str) -> None:
    """No longer serving new clients, until the process ends."""
    notify(STOPPING=1, STATUS=status)


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what WatchdogSec= allows; None if none is awaited."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) else None
