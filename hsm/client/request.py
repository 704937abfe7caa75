"""One signature asked for, and its attempts at nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from hsm.client.link import Answer
from hsm.client.waiting import Line
from hsm.errors import HSMError
from hsm.signing import SignatureScheme
from hsm.verification import VerificationKey

if TYPE_CHECKING:
    from hsm.client.node import NodeClient

Kind = Literal["first", "retry", "hedge"]
POISON_AFTER = 2
"""A request that so many nodes pass over is asked of no more of them: it would take up a session of each."""


class Story(Protocol):
    """The dispatcher, as requests and attempts know it."""

    def on_answer(self, attempt: Attempt, answer: Answer) -> None:
        """A node answered an attempt, or its link was lost."""

    def forget(self, request: SignRequest) -> None:
        """A request was cancelled."""


class SignRequest:
    """One signature asked for. When `done` is called, `signature` or `error` is set.

    `node` is the name of the node that was asked last (of the signer, once there is a
    signature), `started` the client's clock at the call, `deadline` the one after which
    nobody wants the signature, `queued` how many seconds it waited for a node with room.
    """

    __slots__ = (
        "asked", "deadline", "digest", "done", "error", "failed", "key", "line", "live", "node", "place",
        "queued", "scheme", "signature", "ski", "slot", "started", "story", "waits_since",
    )  # fmt: skip

    def __init__(
        self,
        story: Story,
        key: tuple[bytes, VerificationKey | None],
        scheme: SignatureScheme,
        digest: bytes,
        times: tuple[float, float],
        done: Callable[[SignRequest], None],
    ) -> None:
        self.story = story
        self.ski, self.key = key
        self.scheme = scheme
        self.line: Line = (self.ski, scheme.opcode)
        self.digest = digest
        self.started, self.deadline = times
        self.done: Callable[[SignRequest], None] | None = done
        self.signature: bytes | None = None
        self.error: HSMError | None = None
        self.node = ""
        self.queued = 0.0
        # The dispatcher's notes.
        self.live: list[Attempt] = []
        self.failed: tuple[NodeClient, ...] = ()
        """Nodes that failed it: not asked again."""
        self.asked = 0
        """Attempts so far."""
        self.slot = 0
        self.place: tuple[float, int] | None = None
        self.waits_since = 0.0

    def __repr__(self) -> str:
        state = "done" if self.done is None else "waiting" if self.place else f"at {self.node}"
        return f"<SignRequest {self.scheme} {state}>"

    @property
    def is_poison(self) -> bool:
        """Whether the fault seems to be its own: several nodes passed it over."""
        return sum(attempt.node.has_passed_over(attempt) for attempt in self.live) >= POISON_AFTER

    def cancel(self) -> None:
        """Nobody waits for it any more; `done` will not be called. Idempotent."""
        if self.done is not None:
            self.done = None
            self.story.forget(self)


class Attempt:
    """A request at a node; called by the link with the answer, exactly once.

    It outlives a request that was answered by another node, or given up: the node works on it
    all the same, and how long it takes says something about the node.
    """

    __slots__ = ("could_be_signed", "kind", "node", "overdue", "request", "sent", "ski", "story")

    def __init__(self, story: Story, request: SignRequest, node: NodeClient, kind: Kind, sent: float) -> None:
        self.story = story
        self.request: SignRequest | None = request
        self.node = node
        self.kind: Kind = kind
        self.sent = sent
        self.ski = request.ski
        self.overdue = self.could_be_signed = False

    def __call__(self, answer: Answer) -> None:
        """For the link."""
        self.story.on_answer(self, answer)
