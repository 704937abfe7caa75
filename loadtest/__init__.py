"""Load tests: a TLS load client, a harness that compares CPU in interleaved rounds, and benches.

`offload-load run SCENARIO` makes load and says what became of it, `offload-load capacity` finds the
highest rate that meets an objective; `python -m loadtest.benches NAME` runs one bench and prints its figures beside their bars;
`python -m loadtest.resilience` shows what clients notice when nodes fail.

- `client` makes closed-loop load, in a process of its own; `generator` open-loop load, in several
  that a `fleet` holds together; `connections` is what both do, `response` and `results` pure parts;
- `schedule` says when arrivals of an open loop are due, `records` and `histogram` what became of them;
- `cli` is the command; `scenario` its files, `run` and `trial` carry one out, `capacity` searches,
  `compare` loads other proxies in turn, `live` and `tables` show;
- `lab` starts and stops servers; `harness` loads and measures them; `procfs` and `stats` count;
- `proxy` starts Offload and its nodes, `peers` nginx to compare with, `terminators` other proxies,
  `pkcs11` a slow token;
- `resilience` breaks the nodes of a `cluster` under load: `faults` and `overload` say how, `verdict`
  judges, `resilience_page` writes the page, `scrape` reads what the proxy counted meanwhile;
- `client_cost` measures what a signature costs the client's process, against an `instant_node`;
- `agreement` is what all sides must negotiate, `certificates` makes their keys;
- `figures` holds what benches found beside their bars, and prints it;
- `bench` is what every bench needs, `benches` the list of them and the command.

Everything happens on loopback, in a temporary directory, and ends with the harness.
"""
