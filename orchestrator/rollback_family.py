"""Find who belongs to the rollback of a run: the runs that came from it, and what rollbacks of any of them have taken back.

All of them must be in the log. A run that was archived took with it how to take its effects back, and an archived rollback, what it has taken
back already: such a rollback is refused before it begins, and names the files that have to come back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from crewlog.events.store import ArchivedRun, EventStore
from crewlog.orchestrator.commands import TooLate
from crewlog.orchestrator.folds import Folds
from crewlog.orchestrator.rollback import undone_keys
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.terms import run_with
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import RunId, archive_stream, import_stream, rollback_run_id
from crewlog.schemas.system_events import RunArchived, RunImported

ROLLBACKS_PER_LOOK: Final = 16
FILES_NAMED_MAX: Final = 50
"""Files that an error names; the others are named when it is asked for again."""


class Family(NamedTuple):
    """A run and those that came from it, and the keys of what rollbacks of any of them have taken back."""

    runs: Sequence[RunState]
    undone: frozenset[str]
    by_clock: bool
    """One of them was archived and is back, at positions of its return: what was done when is told by the clock."""


class Families:
    """Reads families off the log."""

    def __init__(self, store: EventStore, folds: Folds) -> None:
        self._store, self._folds = store, folds

    async def run(self, tenant: str, run_id: RunId) -> RunState:
        """Return a run of a tenant.

        Raises:
            NotFound: the tenant has no such run.
            ContractError: it is archived.
        """
        state = (await self._folds.states([run_id])).get(run_id)
        if state is not None and state.brief.tenant == tenant:
            return state
        archived = [recorded.event() for recorded in await self._store.read_streams({archive_stream(run_id): 0})]
        if state is None and archived and isinstance(last := archived[-1], RunArchived) and last.tenant == tenant:
            raise _missing(run_id, {run_id: last.file})
        raise NotFound("run", str(run_id))

    async def of(self, state: RunState, *, but: RunId | None = None) -> Family:
        """Find the runs that came from a run, and theirs; and what was taken back of any of them, also by rollbacks of what they came from.

        Args:
            but: the rollback that asks.

        Raises:
            TooLate: another rollback is at some of them right now.
            ContractError: some of them are archived, or were carried out elsewhere.
        """
        runs = {state.run_id: state}
        rollbacks: dict[RunId, RunState] = {}
        archived: dict[RunId, str] = {}
        fresh: Collection[RunId] = [state.run_id]
        while fresh:
            said = await self._store.archived_runs(came_from=fresh, with_tasks=[*fresh, *_rollback_ids(fresh)])
            gone = {one.run_id: one.file for one in said if one.run_id not in archived}
            found = (await self._folds.states(await self._store.child_runs(list(fresh)))).values()
            rollbacks |= {run.run_id: run for run in found if run.rollback is not None}
            new = {run.run_id: run for run in found if run.rollback is None and run.run_id not in runs}
            runs, archived, fresh = runs | new, archived | gone, [*new, *gone]
        ancestors, archived_above = await self._ancestors(state)
        for ancestor in ancestors:
            rollbacks |= {run.run_id: run for run in await self.numbered(ancestor) if run.rollback is not None}
        if archived or archived_above:
            raise _missing(state.run_id, archived | {one.run_id: one.file for one in archived_above})
        for one in rollbacks.values():
            if one.status == "open" and one.run_id != but and one.rollback is not None:
                raise TooLate(f"run {one.rollback.run_id} is being rolled back by run {one.run_id}: ask again when that is over")
        return Family(list(runs.values()), frozenset[str]().union(*map(undone_keys, rollbacks.values())), await self._came_back(list(runs)))

    async def numbered(self, run_id: RunId) -> list[RunState]:
        """Return the runs that have the ids of a run's rollbacks, the first one first. Whoever submits a task chooses its id: one may be no rollback."""
        found: list[RunState] = []
        while True:
            ids = _rollback_ids([run_id], behind=len(found))
            states = await self._folds.states(ids)
            found += [states[one] for one in ids if one in states]
            if len(states) < ROLLBACKS_PER_LOOK:
                return found

    async def _ancestors(self, state: RunState) -> tuple[list[RunId], Sequence[ArchivedRun]]:
        """Return the runs that a run came from; and those of them, and of their rollbacks, that are archived."""
        found: list[RunId] = []
        parent = state.brief.parent_task_id
        while parent is not None:
            run = await run_with(parent, state.brief.tenant, self._store, self._folds)
            if run is None or run.run_id in found:
                break
            found.append(run.run_id)
            parent = run.brief.parent_task_id
        asked = _rollback_ids(found) if parent is None else [*_rollback_ids(found), parent]
        return found, await self._store.archived_runs(with_tasks=asked)

    async def _came_back(self, runs: Sequence[RunId]) -> bool:
        """Say whether one of these runs was archived here and is back.

        Raises:
            ContractError: one of them came from elsewhere.
        """
        origins = {stream: 0 for run_id in runs for stream in (archive_stream(run_id), import_stream(run_id))}
        known: dict[RunId, type] = {}
        is_back = False
        for recorded in await self._store.read_streams(origins):
            event = recorded.event()
            if not isinstance(event, RunArchived | RunImported):
                continue
            if known.setdefault(event.run_id, type(event)) is RunImported:
                raise ContractError(f"run {event.run_id} was imported: what it did, it did elsewhere; roll it back where it ran")
            is_back = is_back or isinstance(event, RunImported)
        return is_back


def _rollback_ids(run_ids: Iterable[RunId], *, behind: int = 0) -> list[RunId]:
    return [rollback_run_id(run_id, number=behind + n) for run_id in run_ids for n in range(1, ROLLBACKS_PER_LOOK + 1)]


def _missing(run_id: RunId, archived: Mapping[RunId, str]) -> ContractError:
    named = list(archived.items())[:FILES_NAMED_MAX]
    lines = [f"\n  crewlog import FOLDER/{file}  brings back run {one}" for one, file in named]
    more = f"\n  and {len(archived) - len(named)} more" if len(archived) > len(named) else ""
    count = "a run" if len(archived) == 1 else f"{len(archived)} runs"
    return ContractError(
        f"run {run_id} cannot be rolled back as long as {count} of its family {'is' if len(archived) == 1 else 'are'} archived: "
        f"what they did, and how to take it back, is in their files alone. Nothing was taken back. Bring them back, then ask again:{''.join(lines)}{more}"
    )
