"""Begin the rollback of a run: read what the run did and what earlier rollbacks took back, and submit the run that takes back the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from crewlog.agents.setup import Setup
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.commands import TooLate
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.rollback import effects_of, plan_rollback, undone_keys
from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Hash, RunId, import_stream, rollback_run_id
from crewlog.schemas.task import RUN, parse_task
from crewlog.schemas.task_events import TaskMoved, TaskStarted

ATTEMPTS_MAX: Final = 8
"""Attempts at one compensation, with growing waits: it may be that what it acts on is away for a while."""
TIMEOUT_S: Final = 86_400
"""Longest time of a rollback, in seconds."""
ROLLBACKS_PER_LOOK: Final = 16


class Begun(NamedTuple):
    """A rollback that is on its way. `is_new`: it was not before."""

    run_id: RunId
    is_new: bool
    orders: int
    left: int


class Rollbacks:
    """Takes runs back."""

    def __init__(self, store: EventStore, driver: Driver, kinds: KindDirectory) -> None:
        self._store, self._driver, self._kinds = store, driver, kinds

    async def begin(self, tenant: str, run_id: RunId, *, actor: str, reason: str) -> Begun:
        """Roll a run back. One that is being rolled back already is not rolled back a second time.

        Raises:
            NotFound: the tenant has no such run.
            TooLate: the run is not over yet.
            ContractError: it is a rollback itself, or was imported.
            Unavailable: the log cannot be reached.
        """
        state = (await self._driver.folds.states([run_id])).get(run_id)
        if state is None or state.brief.tenant != tenant:
            raise NotFound("run", str(run_id))
        if state.rollback is not None:
            raise ContractError(f"run {run_id} is the rollback of run {state.rollback.run_id}, and is not rolled back itself")
        if state.status == "open":
            raise TooLate(f"run {run_id} is not over: it could do more while it is rolled back. End it first: crewlog cancel {run_id} --reason …")
        if await self._store.read_streams({import_stream(run_id): 0}):
            raise ContractError(f"run {run_id} was imported: what it did, it did elsewhere; roll it back where it ran")
        earlier = await self._earlier(run_id)
        if earlier and earlier[-1].status == "open":
            return _begun(earlier[-1], is_new=False)
        return await self._submit(state, earlier, actor=actor, reason=reason)

    async def _submit(self, state: RunState, earlier: Sequence[RunState], *, actor: str, reason: str) -> Begun:
        await self._kinds.refresh()
        events = await self._store.read_run(state.run_id)
        undone = frozenset[str]().union(*map(undone_keys, earlier))
        number = len(earlier) + 1
        effects = effects_of(events, await self._contained(events))
        plan = plan_rollback(state.run_id, effects, number=number, undone=undone, kinds=self._kinds.offers, actor=actor, reason=reason)
        new_id = rollback_run_id(state.run_id, number=number)
        task = parse_task(
            {
                "task_id": new_id,
                "parent_task_id": state.brief.task_id,
                "tenant": state.brief.tenant,
                "user": state.brief.user,
                "surface": state.brief.surface,
                "type": RUN,
                "objective": f"Take back what run {state.run_id} did: {reason}",
                "timeout_seconds": TIMEOUT_S,
                "limits": {"attempts_max": ATTEMPTS_MAX},
                "priority": "high",
                "auto_approve": True,  # a person has asked for it
            }
        )
        submitted = await self._driver.submit(task, "api", rollback=plan)
        return Begun(new_id, submitted.status == "accepted", len(plan.orders), len(plan.left) + plan.more)

    async def _earlier(self, run_id: RunId) -> list[RunState]:
        """Return the rollbacks of a run so far, the first one first."""
        found: list[RunState] = []
        while True:
            ids = [rollback_run_id(run_id, number=len(found) + n) for n in range(1, ROLLBACKS_PER_LOOK + 1)]
            states = await self._driver.folds.states(ids)
            found += [states[one] for one in ids if one in states]
            if len(states) < ROLLBACKS_PER_LOOK:
                return found

    async def _contained(self, events: Sequence[Recorded]) -> dict[Hash, frozenset[str]]:
        """Return for each setup of a run's tasks which tools reach nothing outside."""
        setups = {event.setup.ref for recorded in events if isinstance(event := recorded.event(), TaskStarted | TaskMoved)}
        blobs = await self._store.get_blobs([ref for ref in setups if ref is not None])
        decoded = {ref: msgspec.json.decode(data, type=Setup) for ref, data in blobs.items()}
        return {ref: frozenset(tool.definition.name for tool in setup.tools if tool.is_contained) for ref, setup in decoded.items()}


def _begun(state: RunState, *, is_new: bool) -> Begun:
    rollback = state.rollback
    assert rollback is not None
    return Begun(state.run_id, is_new, len(rollback.orders), len(rollback.left) + rollback.more)
