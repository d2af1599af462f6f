"""Fixtures of real servers, for every test that wants them, and the options of the schedule explorer in `tests/sim`."""

from __future__ import annotations

import pytest

pytest_plugins = ["support.reaper", "support.replayed", "support.postgres", "support.nats", "support.live_crew"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many schedules to play, from which seed on, or one of them again."""
    group = parser.getgroup("simulation")
    group.addoption("--sim-seeds", type=int, default=5_000, help="schedules to play")
    group.addoption("--sim-from", type=int, default=0, help="first seed")
    group.addoption("--sim-seed", type=int, default=None, help="play this seed alone")
