"""Makes the load: an open loop in several processes that keep one timetable.

- `schedule` says when arrivals are due; `generator` is one process, a `fleet` holds several together;
- `connections` does TLS and requests on one epoll, `response` reads the answers;
- `records` says what became of each arrival, `histogram` counts latencies while they come.
"""
