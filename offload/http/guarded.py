"""Headers that applications believe, and that no stranger may send. Pure.

An application behind a proxy reads in headers who its client is. Whoever may write them is whoever he
likes, so that they are dropped, the look-alikes too: servers that hand headers on as variables
(CGI, WSGI, FastCGI: RFC 3875 section 4.1.18) write `_` for `-`, some of them for every other
character as well, and then `X_Forwarded-For` is `X-Forwarded-For`.
"""

from __future__ import annotations

from collections.abc import Iterable

X_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port"})
FORWARDED = frozenset({b"forwarded"})
CLIENT_CERT = frozenset({b"client-cert", b"client-cert-chain"})
REQUEST_ID = frozenset({b"x-request-id"})
TOLD = X_FORWARDED | FORWARDED | CLIENT_CERT | REQUEST_ID
"""Those that we write ourselves; what a trusted proxy says under these names is taken over."""

STRANGERS = (X_FORWARDED | FORWARDED | CLIENT_CERT) | {
    # Who the client is, by other names: nginx, Apache, Akamai, Cloudflare, Fastly, Fly, Envoy, Azure, WebLogic …
    b"x-real-ip", b"x-client-ip", b"client-ip", b"x-cluster-client-ip", b"true-client-ip", b"forwarded-for",
    b"x-forwarded", b"x-original-forwarded-for", b"x-remote-ip", b"x-remote-addr", b"x-proxyuser-ip",
    b"cf-connecting-ip", b"cf-connecting-ipv6", b"fastly-client-ip", b"fly-client-ip", b"x-envoy-external-address",
    b"x-envoy-internal", b"x-azure-clientip", b"x-azure-socketip", b"x-appengine-user-ip",
    b"proxy-client-ip", b"wl-proxy-client-ip",
    # Which scheme, host, port or path it asked for: frameworks take these for the request's own.
    b"front-end-https", b"x-scheme", b"x-url-scheme", b"x-https", b"x-host", b"x-http-host-override",
    b"x-original-host", b"x-original-proto", b"x-original-url", b"x-rewrite-url", b"wl-proxy-ssl",
    # Which certificate it has: names by which other proxies tell it.
    b"x-arr-clientcert", b"x-arr-ssl", b"x-subject-dn", b"x-issuer-dn", b"wl-proxy-client-cert",
    # A CGI program takes it for the variable HTTP_PROXY, and sends its own requests there ("httpoxy").
    b"proxy",
}  # fmt: skip
STRANGERS_PREFIXES = (
    b"x-forwarded-", b"client-cert-", b"x-client-cert", b"x-client-verify", b"x-client-dn", b"x-client-s-dn",
    b"x-client-i-dn", b"client-verify", b"ssl-client", b"x-ssl-", b"x-tls-client", b"x-amzn-mtls-", b"x-amzn-tls-",
)  # fmt: skip

REMEMBERED = 512
"""Names whose fate is kept, so that a client with ever new ones takes up no memory,"""
_NAME_MOST = 64
"""nor one with long ones."""

_AS_VARIABLE = bytes(code if chr(code).isascii() and chr(code).isalnum() else ord("-") for code in range(256))


class DroppedNames(dict[bytes, bool]):
    """Whether a header is dropped, by its name in lower case; a look-up in the usual case."""

    __slots__ = ("_names", "_prefixes")

    def __init__(self, names: Iterable[bytes], prefixes: Iterable[bytes] = ()) -> None:
        """What has one of these names, or begins with one of the prefixes: all in lower case."""
        super().__init__()
        self._names = frozenset(name.translate(_AS_VARIABLE) for name in names)
        self._prefixes = tuple(prefixes)

    def __missing__(self, name: bytes) -> bool:
        variable = name.translate(_AS_VARIABLE)
        drop = variable in self._names or variable.startswith(self._prefixes)
        if len(name) <= _NAME_MOST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[name] = drop
        return drop


def dropped_names(names: Iterable[bytes], *, trusted: bool) -> DroppedNames:
    """What of a request does not reach the application: these, and from strangers all that is believed."""
    return DroppedNames(names) if trusted else DroppedNames({*names, *STRANGERS}, STRANGERS_PREFIXES)
