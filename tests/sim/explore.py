"""Play seeds one after the other: what a test starts once per core, and what a longer search runs by hand.

PYTHONPATH=tests python -m sim.explore FIRST END STEP    prints one JSON object: what failed, what was not stable, how many histories
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from sim.plan import Plan, draw_plan, simpler
from sim.world import run

TWICE_EVERY: Final = 50
"""Every so many seeds are played twice: a difference means that something asks the machine."""


def play(seeds: Iterable[int]) -> dict[str, Any]:
    """Play seeds.

    Returns:
        `failed` (seeds with violations), `unstable` (seeds that did not give the same schedule twice), `histories` (hashes of the order
        of events, one for each different one), `happened` (what happened in all of them together -> how often).
    """
    failed: list[int] = []
    unstable: list[int] = []
    histories: set[int] = set()
    happened: Counter[str] = Counter()
    for seed in seeds:
        report = run(draw_plan(seed))
        histories.add(report.history)
        happened += report.happened
        if report.violations:
            failed.append(seed)
        if seed % TWICE_EVERY == 0 and run(draw_plan(seed)).digest != report.digest:
            unstable.append(seed)
    return {"failed": failed, "unstable": unstable, "histories": sorted(histories), "happened": happened}


def shrunk(plan: Plan) -> Plan:
    """Return the simplest plan that still fails."""
    while True:
        smaller = next((candidate for candidate in simpler(plan) if run(candidate).violations), None)
        if smaller is None:
            return plan
        plan = smaller


def explain(seed: int) -> str:
    """Say how a seed fails, at its simplest, and how to see it again."""
    plan = shrunk(draw_plan(seed))
    found = "\n  ".join(run(plan).violations)
    return f"seed {seed}, shrunk to {plan}:\n  {found}\nagain: pytest tests/sim --sim-seed {seed}"


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # what was imported is not looked at again
    gc.set_threshold(50_000)  # a schedule leaves nothing that has to go before the next one begins
    print(json.dumps(play(range(*map(int, sys.argv[1:4])))))
