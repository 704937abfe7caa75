"""Error pages of the operator's own: read by the supervisor, for workers read no files."""

from __future__ import annotations

from pathlib import Path

from hsm.bounded_file import read_bounded
from hsm.errors import ConfigurationError
from offload.config_http import ErrorSettings
from offload.problems import Problems

PAGE_MOST = 256 * 1024
"""Bytes of a page: every worker keeps it, and sends it whole."""


def plan_pages(settings: ErrorSettings, problems: Problems) -> dict[int, str]:
    """The pages by status, as far as they are good; what is wrong goes to `problems`."""
    read = {status: problems.attempt(_read, path) for status, path in settings.pages.items()}
    return {status: page for status, page in read.items() if page is not None}


def _read(path: Path) -> str:
    too_large = "an error page has 256 KiB at most; put pictures elsewhere"
    data = read_bounded(path, PAGE_MOST, "the error page", too_large)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: the error page is not UTF-8 text") from error
