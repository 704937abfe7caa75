"""How many HSMs and workers a load needs: `offload-load plan`.

- `settings` is what the planner asks of its user, `profile` what is known of a type of HSM (`hsms/`: those that come
  with it, with their sources);
- `site` is a simulated second life of the proxy: workers with the real cluster client, HSMs of the profile, losses;
- `sizing` is the arithmetic, `search` finds the number of HSMs and what more would buy; both pure;
- `tables` shows it, `command` is the command.
"""
