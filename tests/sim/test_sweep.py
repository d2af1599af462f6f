"""One quiet schedule, struck at every place: complete for what a single crash or a single standstill can do."""

from __future__ import annotations

from typing import Final

import pytest
from sim.plan import ORCHESTRATORS, WORKERS, Fault, FaultKind, Mix, Plan, Role
from sim.world import run

QUIET: Final = Mix(0.01, 0.0, 0.0, 0.0)
CALLS: Final = 40
"""Calls on a port within which a process of the quiet schedule has done all its work."""
PLACES: Final[tuple[tuple[Role, int], ...]] = (*(("orchestrator", n) for n in range(ORCHESTRATORS)), *(("worker", n) for n in range(WORKERS)))


def struck(kind: FaultKind, role: Role, index: int, at: float, lasts_s: float = 0.0) -> list[str]:
    fault = Fault(kind, role, index, at, lasts_s)
    return [f"{fault}: {violation}" for violation in run(Plan(1, QUIET, (fault,), 2)).violations]


@pytest.mark.parametrize(("role", "index"), PLACES)
def test_a_process_dies_behind_each_of_its_calls(role: Role, index: int) -> None:
    found = [violation for number in range(1, CALLS + 1) for violation in struck("kill_at_call", role, index, number)]
    assert not found


@pytest.mark.parametrize(("role", "index"), PLACES)
def test_a_process_stands_still_at_each_moment_and_wakes_up_later(role: Role, index: int) -> None:
    found = [violation for moment in range(24) for violation in struck("freeze", role, index, moment / 2, lasts_s=30.0)]
    assert not found
