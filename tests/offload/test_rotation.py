"""The supervisor's ticket keys: the secret file, what is told to workers, and what is handed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsm.errors import ConfigurationError
from offload.config_tls import TicketSettings
from offload.rotation import make_ring, read_shared_secrets


def settings(path: Path, text: str = "", mode: int = 0o600) -> TicketSettings:
    """Settings with a secret file that holds this."""
    path.write_text(text)
    path.chmod(mode)
    return TicketSettings(secret_file=path)


def test_each_line_is_a_secret(tmp_path: Path) -> None:
    """Blank lines and white space around a line are nothing."""
    found = read_shared_secrets(settings(tmp_path / "s", f"{'a' * 32}\n\n  {'b' * 64}\r\n"))
    assert found == [b"a" * 32, b"b" * 64]


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("", 0o600, "holds no secret"),
        ("a" * 32, 0o644, "everybody may read or write this secret; chmod 600"),
        ("a" * 31, 0o600, "secret 1 is shorter than 32 characters; make one with: openssl rand -hex 32"),
        ("a" * 32 + "\n" + "a" * 32, 0o600, "secret 2 stands twice"),
        ("a" * 70_000, 0o600, "larger than 64 KiB"),
        ("\n".join(str(n) * 32 for n in range(9)), 0o600, "54 ticket keys would be needed at a time"),
    ],
)
def test_bad_secret_file_is_one_clear_line(tmp_path: Path, text: str, mode: int, said: str) -> None:
    """It names the file or the section, the fault and the remedy, and never the secret."""
    with pytest.raises(ConfigurationError) as caught:
        make_ring(settings(tmp_path / "s", text, mode))
    assert said in str(caught.value)
    assert "aaaa" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_secret_file(tmp_path: Path) -> None:
    """Its path is in the error."""
    with pytest.raises(ConfigurationError, match=r"nowhere: cannot read the secret: No such file"):
        make_ring(TicketSettings(secret_file=tmp_path / "nowhere"))


def test_tickets_can_be_off() -> None:
    """Then there is no ring, and no listener has keys."""
    assert make_ring(TicketSettings(enabled=False)) is None
