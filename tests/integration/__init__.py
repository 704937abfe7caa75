"""Tests of the whole: real processes, real clients, real sockets."""
