"""`offload-load`: load for TLS servers, and what it shows of Offload and of others.

- `cli` is the command. `scenario` reads scenarios (`scenarios/*.yaml`): `run` carries one out, `events` break
  its cluster meanwhile, `verdict` judges what clients noticed, `growth` and `watch` what the proxy did
  (`scrape` reads its metrics);
- `capacity` searches for the highest rate that meets an objective, `trial` tries one;
- `compare` loads several proxies in turn (`comparisons/*.yaml`); `benches` measure what no load shows;
- `suite` carries out what belongs together, `documents` are results as files, `tables`, `live` and `pages`
  show them, `report` as one HTML file, `figures` hold them beside their goals;
- `generate` makes the load, `targets` starts what is loaded; `procfs` and `stats` count;
- `plan` says how many HSMs a load needs, by a `simulation`: the cluster client's own code in virtual time.

Everything happens on loopback, in a temporary directory, and ends with the command.
"""
