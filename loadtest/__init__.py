"""Load tests: a TLS load client, a harness that compares CPU in interleaved rounds, and benches.

`offload-load run SCENARIO` makes load and says what became of it, `offload-load capacity` finds the
highest rate that meets an objective; `python -m loadtest.benches NAME` runs one bench and prints its figures beside their bars;
`offload-load suite resilience` shows what clients notice when nodes fail.

- `generate` makes open-loop load, `client` closed-loop load in a process of its own;
- `targets` starts what is loaded: Offload and its nodes, nginx and other proxies;
- `cli` is the command; `scenario` its files, `run` and `trial` carry one out, `capacity` searches,
  `compare` loads other proxies in turn, `live` and `tables` show, `documents` are results as files;
- `harness` loads servers in rounds and measures them; `procfs` and `stats` count;
- `events` break the nodes of a cluster under load, `verdict` judges what clients noticed, `growth` what
  memory it took, `scrape` reads what the proxy counted meanwhile, `watch` keeps looking at it;
- `suite` runs scenarios that belong together, `pages` writes the project's pages from the results;
- `client_cost` measures what a signature costs the client's process, against an `instant_node`;
- `figures` holds what benches found beside their bars, and prints it;
- `bench` is what every bench needs, `benches` the list of them and the command.

Everything happens on loopback, in a temporary directory, and ends with the harness.
"""
