"""Thousands of schedules of the whole crew in virtual time, each with its own network, crashes and freezes.

pytest tests/sim/test_schedules.py --sim-seeds 200000 --sim-from 5000     a longer search
pytest tests/sim/test_schedules.py --sim-seed 4711                        one schedule again; what it found is shrunk and printed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from sim.explore import explain, play

TESTS: Final = Path(__file__).parents[1]
FOUND_MAX: Final = 5
ENOUGH: Final = 1_000
"""From so many schedules on an average says something."""
AT_LEAST: Final = {
    "events": 100.0,
    "calls": 300.0,
    "crashes": 0.4,
    "freeze": 0.35,
    "cut": 0.15,
    "unanswered": 20.0,
    "repeated": 7.0,
    "orders": 0.6,
    "held": 0.02,
}
"""What happens in a schedule on average. A search that became faster because less happens is no better."""


def on_every_core(first: int, count: int) -> list[dict[str, Any]]:
    """Share the seeds out to as many processes as there are cores."""
    cores = min(os.cpu_count() or 1, count)
    commands = [[sys.executable, "-m", "sim.explore", str(first + core), str(first + count), str(cores)] for core in range(cores)]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    players = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        outputs = [player.communicate()[0] for player in players]
    finally:
        for player in players:
            player.kill()
    assert [player.returncode for player in players] == [0] * cores
    return [json.loads(output) for output in outputs]


@pytest.mark.timeout(0)
def test_schedules(request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    one, first, count = option("--sim-seed"), option("--sim-from"), option("--sim-seeds")
    played = on_every_core(first, count) if one is None else [play([one])]
    unstable = [seed for part in played for seed in part["unstable"]]
    assert not unstable, f"seeds {unstable} do not give the same schedule twice"
    failed = sorted(seed for part in played for seed in part["failed"])
    assert not failed, f"{len(failed)} schedules failed\n" + "\n".join(explain(seed) for seed in failed[:FOUND_MAX])
    if one is None:
        histories = {history for part in played for history in part["histories"]}
        assert len(histories) > count // 3, f"{count} schedules gave only {len(histories)} different histories: the faults do not bite"
        happened = sum((Counter(part["happened"]) for part in played), Counter())
        on_average = {what: times / count for what, times in sorted(happened.items())}
        print(f"{count} schedules, on average:", ", ".join(f"{times:.3g} {what}" for what, times in on_average.items()))
        thin = [what for what, times in AT_LEAST.items() if on_average.get(what, 0) < times]
        assert count < ENOUGH or not thin, f"too few {', '.join(thin)}: {on_average}"
