"""How long a node is waited for: until a second one is asked too (a hedge), and until it is given up.

A signature takes long for one of two reasons. Others are ahead of it: then a second request is only more work, which
others wait for elsewhere, and where a device does a hundred a second such work makes everything slower. Or its node
does not get on, or not with this one: then a second node helps, and costs next to nothing. Which of the two it is, the
node's other answers tell. A node that works off a queue answers somebody all the time; so it is asked whether it has
said nothing for as long as signatures take, waiting included. And a device takes requests in their order, so one that
is overtaken by later ones is stuck, or merely a little slower than they: that is told by twice the time.

Beside that the second node has to be the quicker one, which the dispatcher sees to: where all are busy, or all have
become slow, nothing is gained.
"""

from __future__ import annotations

from hsm.client.latency import RunningQuantile

QUANTILE, LEAST, UNKNOWN = 0.95, 0.010, 0.100
"""The usual time is what 95 % of signatures take; never less than 10 ms, and 100 ms while it is not known."""
STRAGGLER_FACTOR = 2.0
"""A request that was overtaken is stuck when it takes 2 × the usual time."""
GIVE_UP_FACTOR, GIVE_UP_LEAST = 5.0, 0.25
"""A node is given up for another after 5 × that time, at least 250 ms."""


class Patience:
    """How long signatures usually take, by opcode: those of RSA and of ECDSA keys differ."""

    def __init__(self) -> None:
        self._quantiles: dict[int, RunningQuantile] = {}

    def observe(self, opcode: int, seconds: float) -> None:
        """A signature came after `seconds`."""
        quantile = self._quantiles.get(opcode)
        if quantile is None:
            quantile = self._quantiles[opcode] = RunningQuantile(QUANTILE)
        quantile.observe(seconds)

    def usual(self, opcode: int) -> float:
        """Seconds after which a signature is slow."""
        quantile = self._quantiles.get(opcode)
        return UNKNOWN if quantile is None or quantile.value is None else max(quantile.value, LEAST)

    def most(self, opcode: int) -> float:
        """Seconds after which an attempt is given up for another."""
        return max(self.usual(opcode) * GIVE_UP_FACTOR, GIVE_UP_LEAST)


def hedge_at(sent: float, answered_at: float, newest_answered: float, usual: float) -> float:
    """When a second node is to be asked, should the first say nothing till then.

    The request was `sent`; its node answered anything last `answered_at`, and the newest request that it has answered
    was sent at `newest_answered`.
    """
    quiet = max(sent, answered_at) + usual
    return min(quiet, sent + usual * STRAGGLER_FACTOR) if newest_answered > sent else quiet
