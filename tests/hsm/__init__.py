"""Tests of `hsm`: the wire format, nodes as real processes, and the client of a cluster of them."""
