"""Tests of single parts of the proxy, in this process."""
