"""What is wrong with a message, as a status of the answer and a word for metrics and logs."""

from __future__ import annotations


class HttpError(Exception):
    """A request or a response that does not pass.

    `status` is what the client is answered, `reason` one of a small set of words.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
