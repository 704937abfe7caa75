"""Makes the load: an open loop in several processes that keep one timetable.

- `schedule` says when arrivals are due; `generator` is one process, a `fleet` holds several together;
- `target` is what clients do, `connection` the state of one; `connections` does TLS and requests on one epoll,
  `response` reads the answers, and `slow_link` lets a client trickle;
- `records` says what became of each arrival, `histogram` counts latencies while they come.
"""
