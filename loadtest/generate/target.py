"""What load clients connect to, and what they do there."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.targets.agreement import CIPHER, HOST, POLICY, SMALL_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is connected to, and what one kind of client does there. `requests` is per connection.

    `share` of all clients, as a weight, are of this kind; the share `resumed` of these resume a
    session, once the server has given some. `timeout` is for a handshake, and for each request,
    in seconds; `cipher` is the one that must be negotiated (empty: any). The connection is kept
    open for `hold` seconds after its requests; a client whose `bytes_per_second` are not 0 is slow.
    One that comes `again` does so as soon as it is done, until the schedule ends.
    """

    port: int
    host: str = HOST
    share: float = 1.0
    resumed: float = 0.0
    requests: int = 1
    path: str = SMALL_PATH
    policy: str = POLICY
    cipher: str = CIPHER
    server_name: str = "localhost"
    timeout: float = 10.0
    hold: float = 0.0
    bytes_per_second: float = 0.0
    again: bool = False

    @property
    def request(self) -> bytes:
        """The request that is sent."""
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.server_name}\r\nAccept: */*\r\n\r\n".encode()
