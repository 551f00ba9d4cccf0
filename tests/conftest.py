"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy with something else is slow, not wrong: pytest's own timeout is the limit.
settings.register_profile("mesh", deadline=None)
settings.load_profile("mesh")
