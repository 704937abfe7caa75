"""The pages that are made from the code are current, and the example configurations are good."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from hsm import config
from offload import check, reference
from offload.config import Config
from tests.offload.identities import Identities
from tests.support.hsm_support import ROOT, require
from tests.support.proxy import run_offload

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PKCS11 = ("softhsm", "aws-cloudhsm", "yubihsm", "luna")
"""Their tokens are elsewhere: their shape has tests of its own."""


@pytest.mark.parametrize(
    ("page", "made"),
    [("configuration.md", reference.configuration), ("metrics.md", reference.metrics_page)],
)
def test_generated_pages_are_current(page: str, made: object) -> None:
    """`make docs` would change nothing."""
    assert callable(made)
    assert (ROOT / "docs" / page).read_text() == made(), "run `make docs`"


def test_the_schema_knows_every_key() -> None:
    """`offload schema` prints JSON whose definitions hold the contract's keys."""
    done = run_offload("schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_example_configurations_are_good(path: Path, identities: Identities, tmp_path: Path) -> None:
    """`offload check` accepts each, once certificates, keys and names are where it says."""
    if path.stem in PKCS11:
        pytest.skip("its token is elsewhere; tests/hsm/pkcs11 checks its shape")
    text = path.read_text()
    text = text.replace("0.0.0.0:8443", "127.0.0.1:0").replace("127.0.0.1:8443", "127.0.0.1:0")
    text = text.replace("/etc/offload/", "").replace("./keys", str(identities.keys))
    (tmp_path / "web.pem").write_bytes(identities["p256"].pem)
    (tmp_path / "web-ecdsa.pem").write_bytes(identities["p256"].pem)
    (tmp_path / "web-rsa.pem").write_bytes(identities["rsa2048"].pem)
    if "links/" in text:
        require("openssl")
        script = ROOT / "configs" / "make-link-ca.sh"
        names = [str(tmp_path / "links"), "proxy", "hsm1.example", "hsm2.example"]
        subprocess.run([str(script), *names], check=True, capture_output=True, timeout=60)
    copy = tmp_path / path.name
    copy.write_text(text)
    found, _ = check.find_problems(config.load(copy, Config), copy)
    assert found.lines == []


def test_every_example_says_how_to_use_it() -> None:
    """The head of each is a comment with the commands."""
    for path in CONFIGS:
        assert path.read_text().startswith("# "), path
        assert yaml.safe_load(path.read_text()), path


def test_documents_name_files_that_exist() -> None:
    """Relative links in the Markdown pages lead somewhere."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
