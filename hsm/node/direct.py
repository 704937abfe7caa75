"""A token used by a tool, without a node: `hsm keygen`, `hsm keys list`, `hsm doctor`.

One thread, one session besides those that `open_session` gives. The module is loaded into the tool's own
process: if it crashes, that is the end of the tool.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Self

from hsm.errors import ConfigurationError
from hsm.node.ckr import CryptokiError
from hsm.node.cryptoki import Module, Session
from hsm.node.keeper import Target, choose_token, key_filter, log_in
from hsm.node.keys import Found, KeyScanner, TokenKey, TokenObject
from hsm.node.mechanisms import RECIPES
from hsm.signing import SignatureScheme


class DirectToken:
    """A token, logged in to. Close it."""

    def __init__(self, target: Target) -> None:
        """Load the module and log in, once. Raises ConfigurationError."""
        self._target = target
        try:
            self.module = Module(target.module_path)
            self.info = choose_token(self.module.tokens(), target.uri)
            self.mechanisms = self.module.mechanisms(self.info.slot_id)
            self.session = self.open_session()
            log_in(self.session, self.info, target)
        except CryptokiError as error:
            raise ConfigurationError(f"module {target.module_path}: {error}; is the token there?") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out and let the module go."""
        with contextlib.suppress(CryptokiError):
            self.module.finalize()

    def open_session(self) -> Session:
        """Another session; the login counts for it too. Raises CryptokiError."""
        return self.module.open_session(self.info.slot_id)

    def keys(self, wanted: Callable[[TokenObject], bool] | None = None) -> Found:
        """The keys as a node would offer them: those `wanted`, or those that the URI means. Raises CryptokiError."""
        scanner = KeyScanner(self.mechanisms, self._target.mapped, wanted or key_filter(self._target.uri))
        return scanner.scan(self.session)


def sign(session: Session, key: TokenKey, scheme: SignatureScheme, digest: bytes) -> bytes:
    """One signature: RSA raw, ECDSA DER. Raises CryptokiError, ValueError for an answer that is none."""
    recipe = RECIPES[scheme.opcode]
    raw = session.sign(recipe.mechanism, key.handle, recipe.data(digest, key.digest_most))
    return recipe.signature(raw)
