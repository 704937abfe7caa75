"""Reads one HTTP/1.1 response after another, sans I/O: as much as a load client must know."""

from __future__ import annotations

MAX_HEAD = 16 * 1024
"""Longest head of a response in bytes; the servers measured send about 200."""

_END = b"\r\n\r\n"


class ResponseError(Exception):
    """The response is not the one that a load test expects; `reason` is a word to count it by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ResponseReader:
    """Finds the end of a 200 response by its Content-Length; `feed` may come in any pieces."""

    __slots__ = ("_head", "_left", "body_bytes")

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = -1
        self.body_bytes = 0
        """Bytes of all bodies read so far."""

    def feed(self, data: memoryview | bytes) -> bool:
        """Take bytes as they came; True when the response is complete, then the next may follow.

        Raises ResponseError: `http_<status>`, `http_malformed`, `http_excess` (bytes after the
        end: this client does not pipeline).
        """
        count = len(data)
        if self._left < 0:
            self._head += data
            end = self._head.find(_END)
            if end < 0:
                if len(self._head) > MAX_HEAD:
                    raise ResponseError("http_malformed")
                return False
            count = len(self._head) - end - len(_END)
            self._left = content_length(bytes(self._head[:end]))
            self._head.clear()
        if count > self._left:
            raise ResponseError("http_excess")
        self.body_bytes += count
        self._left -= count
        if self._left:
            return False
        self._left = -1
        return True


def content_length(head: bytes) -> int:
    """The body's length that a response's head (without the empty line) states.

    Raises ResponseError for a status other than 200, or when there is no usable length.
    """
    status_line, _, fields = head.partition(b"\r\n")
    parts = status_line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise ResponseError("http_malformed")
    if parts[1] != b"200":
        raise ResponseError(f"http_{parts[1].decode()}")
    for line in fields.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    raise ResponseError("http_malformed")
