"""Tests of Offload; `support` starts the real programs, `integration` talks to them."""
