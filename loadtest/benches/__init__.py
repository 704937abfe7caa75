"""Benches of what a load cannot show: each gives figures beside their bars (`figures.Findings`).

- `idle`: memory of idle connections, and what closed ones leave behind;
- `generator`: whether the load client is cheap and punctual enough to measure others with;
- `node`: a PKCS#11 node beside a bare loop of C_Sign (`bare_sign.c`);
- `client_cost`: what a signature costs the client of the cluster, against an `instant_node`;
- `silence`: what thousands of silent connections cost everybody else.
"""

from collections.abc import Callable, Mapping

from loadtest.benches import client_cost, generator, idle, node, silence
from loadtest.figures import Findings

BENCHES: Mapping[str, Callable[[int], Findings]] = {
    "idle": idle.measure,
    "generator": generator.measure,
    "node": node.measure,
    "client-cost": client_cost.measure,
    "silence": silence.measure,
}
"""By name; each is told how many rounds to make."""
