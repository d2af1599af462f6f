"""Which new runs are taken: a tenant that has as much open, or as much waiting, as the operator allows is refused, so that one that submits
for ever meets a clear error instead of burying all others. A rollback is always taken: it is bounded by the runs that there were, one at a time
for each.

What is counted is what this process sees itself, set right by every sweep. Several orchestrators may together take somewhat more than
the limit: as much as the others take within one sweep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import TenantFull
from crewlog.schemas.ids import RunId
from crewlog.schemas.subjects import SHADOW_LANE


class Admission:
    """Counts the open runs of each tenant."""

    def __init__(self, open_runs_max: int, waiting_tasks_max: int, waiting_of: Callable[[str], int]) -> None:
        """Begin without any runs.

        Args:
            waiting_of: how many tasks of a tenant wait for their turn with an agent.
        """
        self._open_runs_max, self._waiting_tasks_max, self._waiting_of = open_runs_max, waiting_tasks_max, waiting_of
        self._open: defaultdict[str, set[RunId]] = defaultdict(set)
        self._counted: defaultdict[str, set[RunId]] = defaultdict(set)
        """What the count under way has found so far."""

    def check(self, tenant: str) -> None:
        """Let a new run of a tenant pass.

        Raises:
            TenantFull: it may have no more now.
        """
        runs = len(self._open.get(tenant, ()))
        if runs >= self._open_runs_max:
            raise TenantFull(
                *(tenant, "CREWLOG_OPEN_RUNS_MAX"),
                used=runs,
                limit_max=self._open_runs_max,
                what="open runs",
                next_step="submit it again when some have ended, cancel some (crewlog cancel RUN), or raise the limit",
            )
        waiting = self._waiting_of(tenant)
        if waiting >= self._waiting_tasks_max:
            raise TenantFull(
                *(tenant, "CREWLOG_WAITING_TASKS_MAX"),
                used=waiting,
                limit_max=self._waiting_tasks_max,
                what="tasks waiting for an agent",
                next_step="submit it again when some were taken, add agents (crewlog scale KIND=N), or raise the limit",
            )

    def note(self, state: RunState) -> None:
        """Take note of a run that was read or changed. Shadows take nobody's place: they are bounded where they begin."""
        if state.brief.priority == SHADOW_LANE:
            return
        for runs in (self._open[state.brief.tenant], self._counted[state.brief.tenant]):
            (runs.add if state.status == "open" else runs.discard)(state.run_id)

    def begin_count(self) -> None:
        """Begin to count anew; what is noted meanwhile counts."""
        self._counted = defaultdict(set)

    def end_count(self, runs: Iterable[tuple[RunId, str]]) -> None:
        """Let the new count be the one that counts.

        Args:
            runs: the open runs that the log has, with their tenants.
        """
        for run_id, tenant in runs:
            self._counted[tenant].add(run_id)
        self._open = self._counted
        self._counted = defaultdict(set)
