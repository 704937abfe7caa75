"""Failures of the proxy that are nobody's bug."""

from __future__ import annotations

from hsm.errors import ConfigurationError

__all__ = ["ConfigurationError", "WorkerLost"]


class WorkerLost(Exception):
    """A worker died or stopped answering while it was asked something."""
