"""Starts what is loaded, on loopback, in the temporary directory of a `lab`, and stops just that.

- `proxy` starts Offload and its nodes, `cluster` some that can be broken under load;
- `peers` starts nginx, as a web server and as a peer, `terminators` other proxies;
- `pkcs11` makes a slow token; `certificates` makes keys; `agreement` is what all sides must negotiate.
"""
