"""What holds for all tests, whichever of them are run."""

from __future__ import annotations

from hypothesis import settings

# No time limit for an example: another process may have the machine.
settings.register_profile("project", deadline=None, database=None, max_examples=60)
settings.load_profile("project")
