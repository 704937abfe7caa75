"""The example configurations for tokens, and the settings of a PKCS#11 node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hsm import config
from hsm.config import NodeSettings, Pkcs11Node, Pkcs11Settings, TokenSettings
from hsm.errors import ConfigurationError
from hsm.node.environment import _with_hidden_pin
from hsm.node.pin import read_pin
from hsm.node.pkcs11_settings import check_settings, uri_of
from offload.children import LocalNodeChild
from offload.config import Config
from tests.support.hsm_support import ROOT

MODULES = {
    "softhsm": "/usr/lib/softhsm/libsofthsm2.so",
    "aws-cloudhsm": "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so",
    "yubihsm": "/usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so",
    "luna": "/usr/safenet/lunaclient/lib/libCryptoki2_64.so",
}
URI = "pkcs11:token=tls?module-path=/m.so"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_have_the_right_shape(name: str) -> None:
    """Every key is known, every node is a PKCS#11 one with its vendor's module, and no PIN is inside."""
    path = ROOT / "configs" / f"{name}.yaml"
    text = path.read_text()
    assert "pin-value=" not in text.replace("Never pin-value=", "")
    for node in config.load(path, Config).hsm.nodes:
        assert isinstance(node.run, Pkcs11Settings)
        uri = uri_of(node.run)
        assert uri.module_path == MODULES[name]
        assert uri.token
        assert (uri.pin_source or "").startswith("file:/run/secrets/")


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("aws-cloudhsm", ("900", "1,024", "user:password", "187", "CKR_FUNCTION_FAILED", "at least 2 HSMs",
                          "--disable-validate-key-at-init", "read-only", "more than five", "hsm2m.medium")),
        ("yubihsm", ("16 sessions", "30 s", "sign-pss", "YUBIHSM_PKCS11_CONF")),
        ("luna", ("ChrystokiConfigurationPath", "CKM_RSA_PKCS", "high-availability")),
        ("softhsm", ("group softhsm", "slot-id= is not stable", "label or serial")),
    ],
)  # fmt: skip
def test_the_examples_tell_the_vendors_caveats(name: str, facts: tuple[str, ...]) -> None:
    """What an operator would find out the hard way stands in a comment."""
    comments = [
        line.partition("#")[2] for line in (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    ]
    text = " ".join(" ".join(comments).split())
    assert [fact for fact in facts if fact not in text] == []


def settings(**given: Any) -> TokenSettings:
    """Settings of a node's token, as from a file."""
    return config.validate({"token": "pkcs11", **given}, TokenSettings, "c.yaml", Path("/etc"))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "uri: a pkcs11 token needs it (or module); write pkcs11:token=NAME?module-path=/path.so"),
        ({"uri": "x"}, "uri: not a PKCS#11 URI; write one like pkcs11:token=NAME"),
        ({"uri": URI, "label": "web"}, "uri and label are both given; keep uri"),
        ({"uri": URI, "session": 4}, "session: unknown key; did you mean 'sessions'?"),
        (
            {"uri": URI, "emulate": {}},
            "emulate: not for this kind of token; leave it out, or choose the other kind",
        ),
        ({"uri": URI, "keys": [{"objekt": "web"}]}, "keys[0].objekt: unknown key; did you mean 'object'?"),
        ({"uri": URI, "sessions": 0}, "sessions"),
        ({"uri": URI, "env": {"A=B": "c"}}, "env: 'A=B' can't be the name of an environment variable"),
        ({"uri": URI, "keepalive": "20"}, "keepalive: '20' is not a duration"),
    ],
)
def test_mistakes_name_their_key(given: dict[str, Any], complaint: str) -> None:
    """As everywhere: the key's place and the remedy."""
    with pytest.raises(ConfigurationError) as caught:
        settings(**given)
    assert any(line.startswith("c.yaml: ") and complaint in line for line in str(caught.value).splitlines())


def test_software_settings_know_nothing_of_modules() -> None:
    """A key of the other kind of token is told as such."""
    with pytest.raises(
        ConfigurationError, match="uri: not for this kind of token; leave it out, or choose the other kind"
    ):
        config.validate({"keys": "k", "uri": URI}, TokenSettings, "c.yaml", Path("/etc"))


def test_separate_keys_say_what_a_uri_says() -> None:
    """Module, label, serial number and slot."""
    found = settings(module="/m.so", label="tls", serial="7", slot_id=3, pin_source="env:P")
    assert isinstance(found, Pkcs11Settings)
    assert str(uri_of(found)) == "pkcs11:token=tls;serial=7;slot-id=3?module-path=/m.so"


def test_what_can_be_checked_without_the_module_is() -> None:
    """`offload check` finds a module that is not installed."""
    found = settings(uri=URI)
    assert isinstance(found, Pkcs11Settings)
    with pytest.raises(ConfigurationError, match=r"module /m.so: no such file"):
        check_settings(found)


def test_a_pin_shows_in_no_repr_and_no_dump() -> None:
    """Settings may be logged; only the node's own process is told."""
    found = settings(uri=URI + "&pin-value=hush-hush")
    assert isinstance(found, Pkcs11Settings)
    assert "hush" not in repr(found) + str(found) + found.model_dump_json()
    assert found.revealed()["uri"].endswith("pin-value=hush-hush")


def test_a_local_node_gets_all_its_settings() -> None:
    """They go by a file in memory, from which the node reads the same settings again."""
    given = {
        "uri": URI + "&pin-source=fd:9",
        "sessions": 3,
        "env": {"A": "b"},
        "directory": "d",
        "keepalive": "7s",
    }
    found = settings(**given, keys=[{"object": "web", "certificate": "web.pem"}])
    assert isinstance(found, Pkcs11Settings)
    child = LocalNodeChild("a", found, Path("/run/x/a.sock"), None)  # type: ignore[arg-type]  # it logs nothing here
    descriptor = child._settings_file()
    with open(descriptor, "rb") as file:
        file.seek(0)
        data = json.load(file)
    again = config.validate(data, NodeSettings, "x", Path("/elsewhere"))
    assert isinstance(again, Pkcs11Node)
    for name in Pkcs11Settings.model_fields:
        assert getattr(again, name) == getattr(found, name), name
    assert found.inherited_descriptors() == [9]


def test_the_pin_is_moved_out_of_the_command_line() -> None:
    """In both spellings of the option; a URI without a PIN, or a bad one, is left alone."""
    for option in (["--token-uri", URI + "&pin-value=hush"], [f"--token-uri={URI}&pin-value=hush"]):
        found = _with_hidden_pin(["python", "-m", "hsm.cli", *option, "--name", "a"], "--token-uri")
        assert found is not None
        assert "hush" not in " ".join(found)
        source = " ".join(found).partition("pin-source=")[2].partition(" ")[0]
        assert read_pin(source).reveal() == b"hush"
    for uri in (URI, URI + "&pin-source=fd:3", "pkcs11:nonsense"):
        assert _with_hidden_pin(["python", "--token-uri", uri], "--token-uri") is None
