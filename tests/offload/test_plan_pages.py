"""Error pages from files: what can be wrong with them, and that they are watched."""

from __future__ import annotations

from pathlib import Path

from offload.config_http import ErrorSettings
from offload.plan_pages import PAGE_MOST, plan_pages
from offload.problems import Problems


def test_good_and_bad_pages(tmp_path: Path) -> None:
    """Each mistake is told with its file; the good ones are read."""
    files = {502: "Löß".encode(), 503: b"x" * (PAGE_MOST + 1), 504: b"\xff"}
    for status, content in files.items():
        (tmp_path / f"{status}.html").write_bytes(content)
    pages = {status: tmp_path / f"{status}.html" for status in (500, 502, 503, 504)}
    problems = Problems()
    assert plan_pages(ErrorSettings(pages=pages), problems) == {502: "Löß"}
    assert problems.lines == [
        f"{tmp_path}/500.html: cannot read the error page: No such file or directory",
        f"{tmp_path}/503.html: an error page has 256 KiB at most; put pictures elsewhere",
        f"{tmp_path}/504.html: the error page is not UTF-8 text",
    ]
