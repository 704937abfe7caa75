"""A TLS-terminating reverse proxy whose private keys live in a cluster of HSM nodes.

`offload.cli` has the commands; `offload.supervisor` is the parent process, `offload.worker`
one data-plane process; `offload.tls` is the binding to s2n-tls.
"""

__version__ = "0.1.0"
