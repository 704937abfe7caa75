"""Failures of the proxy that are nobody's bug."""

from __future__ import annotations

from hsm.errors import ConfigurationError

__all__ = ["TLS_LIBRARY", "ConfigurationError", "WorkerLost"]

TLS_LIBRARY = "s2n-tls"
"""The `name` of the ImportError that says why the TLS library can't be used."""


class WorkerLost(Exception):
    """A worker died or stopped answering while it was asked something."""
