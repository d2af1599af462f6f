"""Named fault points: no-ops in production, the places where tests kill, stop or fail a process.

At a place:  `if faults.hook is not None: faults.hook("after_task_append")` — one global load when nothing is armed.
Armed by `CREWLOG_FAULT=name:hit:action[,…]` with actions `kill`, `stop` and `raise`. `CREWLOG_FAULT_ONCE` names a folder: each
fault leaves a marker there and fires once over all lives of a process; a driver checks the marker to know the point was reached.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

OF_EVERY_LOG: Final = ("before_log_commit", "after_log_commit")
"""In any process that appends to Postgres: around the call that commits, before anybody hears of it."""
OF_AGENTS: Final = (
    *("before_blobs_stored", "after_blobs_stored"),
    *("before_task_append", "after_task_append"),
    *("before_model_call", "after_model_call"),
    *("before_tool_effect", "after_tool_effect"),
    *("before_wake_published", "after_wake_published"),
    *("before_work_ack", "after_work_ack"),
    *("before_letter_kept", "after_letter_kept"),
)
OF_ORCHESTRATORS: Final = (
    *("before_run_append", "after_run_append"),
    *("before_work_published", "after_work_published"),
    *("before_end_announced", "after_end_announced"),
    *("before_intake_ack", "after_intake_ack"),
    *("after_overtaker_read", "before_overtaker_removed", "after_overtaker_removed"),
    *("before_budget_change", "after_budget_change"),
    *("before_timers_taken", "after_timers_taken"),
    *("before_settlement", "after_settlement"),
    *("before_schedule_append", "after_schedule_append"),
)
OF_PROJECTORS: Final = (
    *("before_view_commit", "after_view_commit"),
    *("before_relay_publish", "after_relay_publish"),
)
POINTS: Final = (*OF_EVERY_LOG, *OF_AGENTS, *OF_ORCHESTRATORS, *OF_PROJECTORS)

hook: Callable[[str], None] | None = None


class InjectedFault(Exception):
    """What the action `raise` raises."""


def arm(spec: str, once: Path | None) -> Callable[[str], None]:
    """Build a hook from `name:hit:action[,…]`.

    Raises:
        ValueError: an unknown point or action.
    """
    table: dict[str, tuple[int, str]] = {}
    for part in spec.split(","):
        name, hit, action = part.split(":")
        if name not in POINTS or action not in ("kill", "stop", "raise"):
            raise ValueError(f"unknown fault {part!r}; points: {', '.join(POINTS)}; actions: kill, stop, raise")
        table[name] = (int(hit), action)
    seen: dict[str, int] = {}

    def fire(name: str) -> None:
        if name not in table:
            return
        hit, action = table[name]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] != hit or not _first_time(once, name):
            return
        if action == "raise":
            raise InjectedFault(name)
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        if action == "kill":
            time.sleep(60)  # nothing may run between the signal's delivery and the end

    return fire


def _first_time(once: Path | None, name: str) -> bool:
    if once is None:
        return True
    try:
        os.close(os.open(once / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def install_from_environment() -> None:
    """Arm the faults that the environment names; called once by each process."""
    global hook  # noqa: PLW0603  (the one switch that production code looks at)
    if spec := os.environ.get("CREWLOG_FAULT"):
        once = os.environ.get("CREWLOG_FAULT_ONCE")
        hook = arm(spec, Path(once) if once else None)
