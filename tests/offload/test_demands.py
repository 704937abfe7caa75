"""What policies may ask of a key, against what s2n really asks, and whether nodes can do it."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from hsm.errors import ConfigurationError
from hsm.signing import SCHEMES, KeyType
from offload import demands
from offload.certificates import load_chain
from offload.demands import POLICIES_WITHOUT_PSS, Demand, demand, policies_within, policy_opcodes, shortfall
from offload.probe import Cell, able
from offload.tls import Context, TLSError, policy_schemes
from tests.offload.handshakes import OpenSslClient, Pair, certificate_of, sign
from tests.offload.identities import Identities

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
PSS = frozenset({0x35, 0x36, 0x37})
PKCS1 = frozenset({0x05, 0x06, 0x07})
SKI = b"k" * 20
WEB = Demand("web", "default", Path("web.pem"), SKI, KeyType.RSA, PSS)


def negotiated(identities: Identities, kind: str, policy: str, version: ssl.TLSVersion) -> str:
    """The scheme that a server with this policy asks for, in a handshake that OpenSSL finishes."""
    identity = identities[kind]
    context = Context(policy=policy, certificates=[certificate_of(identity)])
    with Pair(context) as pair:
        context.release()
        client = OpenSslClient(pair.client_sock, str(identities.ca), version)
        request = pair.until_signature(client.step)
        pair.server.apply_signature(sign(identity, request))
        pair.finish(client.step)
        client.tls.close()
    return request.scheme


@pytest.mark.parametrize("policy", POLICIES_WITHOUT_PSS)
def test_the_recommended_policies_never_ask_for_pss(identities: Identities, policy: str) -> None:
    """A client that would rather have PSS gets PKCS#1 v1.5 (TLS 1.2); nothing says that it could be otherwise."""
    assert negotiated(identities, "rsa2048", policy, TLS12).startswith("rsa_pkcs1_")
    assert policy_opcodes(policy, KeyType.RSA) == PKCS1


@pytest.mark.parametrize(
    ("policy", "version"),
    [
        ("default", TLS12), ("default", TLS13), ("default_tls13", TLS13), ("default_fips", TLS13),
        ("default_pq", TLS13), ("20240501", TLS12), ("ELBSecurityPolicy-2016-08", TLS12), ("20240331", TLS12),
        ("AWS-CRT-SDK-TLSv1.3", TLS13),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
def test_what_s2n_asks_for_was_foretold(
    identities: Identities, policy: str, version: ssl.TLSVersion, kind: str
) -> None:
    """The scheme of a real handshake is among those that the key was said to need."""
    scheme = SCHEMES[negotiated(identities, kind, policy, version)]
    assert scheme.opcode in policy_opcodes(policy, scheme.key_type)


def test_schemes_of_a_policy() -> None:
    """RFC 9151 has SHA-384 only; an unknown policy has none."""
    assert policy_schemes("rfc9151") == {"ecdsa_secp384r1_sha384", "rsa_pkcs1_sha384", "rsa_pss_rsae_sha384"}
    with pytest.raises(TLSError):
        policy_schemes("best")


def test_a_policy_without_signatures_of_the_keys_kind(identities: Identities) -> None:
    """CNSA 2 signs with ML-DSA only: told before anything runs."""
    chain = load_chain(identities["rsa2048"].chain_path)
    with pytest.raises(ConfigurationError, match=r"tls\.policy: 'cnsa_2' does not sign with RSA keys"):
        demand("web", "cnsa_2", chain)


def test_nodes_meet_a_demand_together() -> None:
    """What one can't do another may; a node without the key counts for nothing."""
    assert shortfall(WEB, {"a": {SKI: PSS}, "b": {SKI: PKCS1}}) is None
    assert shortfall(WEB, {"a": {SKI: frozenset({0x35})}, "b": {SKI: frozenset({0x36, 0x37})}}) is None
    assert shortfall(WEB, {"a": {SKI: PSS | PKCS1}, "b": {}}) is None
    assert shortfall(WEB, {"a": {}, "b": None}) is None  # a missing key is told otherwise


def test_a_shortfall_names_what_to_do() -> None:
    """Listener, certificate, key, nodes, schemes, and the policies that work."""
    found = shortfall(WEB, {"a": {SKI: PKCS1}, "b": {SKI: PKCS1}, "c": {}})
    assert found is not None
    assert found.is_final
    text = str(found)
    for part in ("listener web", "web.pem", SKI.hex(), "a, b", "rsa_pss_rsae_sha384", *POLICIES_WITHOUT_PSS):
        assert part in text
    assert "\n" not in text


def test_a_node_that_has_not_told_yet_may_come_to_help() -> None:
    """As long as one is on its way the shortfall is not final."""
    found = shortfall(WEB, {"a": {SKI: PKCS1}, "b": None})
    assert found is not None
    assert not found.is_final


def test_no_policy_helps_a_key_that_can_do_next_to_nothing() -> None:
    """Then none is named."""
    found = shortfall(WEB, {"a": {SKI: frozenset({0x05})}})
    assert "tls.policy" not in str(found)


def test_a_library_with_other_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that the library in use does not know is not recommended."""
    monkeypatch.setattr(demands, "POLICIES_WITHOUT_PSS", ("no-such-policy", POLICIES_WITHOUT_PSS[0]))
    assert policies_within(PKCS1, KeyType.RSA) == [POLICIES_WITHOUT_PSS[0]]


def test_what_a_node_failed_at_it_can_not_do(identities: Identities) -> None:
    """Nodes that list their keys are believed but for that; of others a key that signs at all counts as able."""
    chain = load_chain(identities["rsa2048"].chain_path)
    tried = [
        Cell(chain, SCHEMES["rsa_pkcs1_sha256"], "a", 0.001),
        Cell(chain, SCHEMES["rsa_pss_rsae_sha256"], "a", None, "refused"),
    ]
    assert able({chain.ski: PSS, SKI: PSS}, tried) == {chain.ski: PSS - {0x35}, SKI: PSS}
    assert able(None, tried) == {chain.ski: (PSS | PKCS1) - {0x35}}
    assert able(None, tried[1:]) == {}
