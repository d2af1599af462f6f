"""Begin the rollback of a run, and carry it on: read what the run and those that came from it did and what rollbacks took back, and hand in what
is left of that, page by page.

Nothing but the log knows how far a rollback is: one that wants its next page is open, so the sweep comes back to it, and whichever orchestrator
looks reads the page. When two do, the state of the run lets one of them add it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from crewlog.agents.setup import Setup
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.commands import ContinueRollback, TooLate
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.rollback import Known, RunEffect, effects_of, plan_page, planned_keys, wants_more
from crewlog.orchestrator.rollback_family import Families, Family
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.run_history import erased_text
from crewlog.schemas.effects import Rollback, RollbackPage
from crewlog.schemas.errors import ContractError, NotFound, OrchestrationError
from crewlog.schemas.ids import Hash, RunId, rollback_run_id
from crewlog.schemas.task import RUN, parse_task
from crewlog.schemas.task_events import TaskMoved, TaskStarted

ATTEMPTS_MAX: Final = 8
"""Attempts at one compensation, with growing waits: it may be that what it acts on is away for a while."""
TIMEOUT_S: Final = 86_400
"""Longest time of a rollback, in seconds."""

_SETUPS: Final = frozenset({TaskStarted.__name__, TaskMoved.__name__})
"""Events that say which setup a task has."""

log = logging.getLogger(__name__)


class Begun(NamedTuple):
    """A rollback that is on its way. `is_new`: it was not before; `more` effects are looked at when it is through with `orders`."""

    run_id: RunId
    is_new: bool
    orders: int
    left: int
    more: int


class Rollbacks:
    """Takes runs back."""

    def __init__(self, store: EventStore, driver: Driver, kinds: KindDirectory) -> None:
        self._store, self._driver, self._kinds = store, driver, kinds
        self._families = Families(store, driver.folds)
        self._reading: dict[RunId, asyncio.Task[None]] = {}

    def note(self, state: RunState) -> None:
        """Take note of a run behind each of its steps: a rollback that is through with a page gets the next one."""
        if wants_more(state) and state.run_id not in self._reading:
            task = asyncio.create_task(self._continue(state), name=f"rollback {state.run_id}")
            self._reading[state.run_id] = task
            task.add_done_callback(lambda _: self._reading.pop(state.run_id, None))

    async def stop(self) -> None:
        """Let go of pages that are being read. Safe to call twice."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    async def begin(self, tenant: str, run_id: RunId, *, actor: str, reason: str) -> Begun:
        """Roll a run back. One that is being rolled back already is not rolled back a second time.

        Raises:
            NotFound: the tenant has no such run.
            TooLate: the run is not over yet.
            ContractError: it is a rollback itself, was carried out elsewhere, or it or a run of its family is archived.
            Unavailable: the log cannot be reached.
        """
        state = await self._families.run(tenant, run_id)
        if state.rollback is not None:
            raise ContractError(f"run {run_id} is the rollback of run {state.rollback.run_id}, and is not rolled back itself")
        if state.status == "open":
            raise TooLate(f"run {run_id} is not over: it could do more while it is rolled back. End it first: crewlog cancel {run_id} --reason …")
        taken = await self._families.numbered(run_id)
        if under_way := next((run for run in taken if run.rollback is not None and run.status == "open"), None):
            return _begun(under_way, is_new=False)
        return await self._submit(state, len(taken) + 1, actor=actor, reason=reason)

    async def _submit(self, state: RunState, number: int, *, actor: str, reason: str) -> Begun:
        family = await self._families.of(state)
        for one in family.runs:
            if one.status == "open":
                raise TooLate(f"run {one.run_id}, which came from run {state.run_id}, is not over: crewlog cancel {one.run_id} --reason … ends it")
        page = await self._page(state.run_id, family)
        plan = Rollback(state.run_id, number, page.orders, page.kinds, page.left, actor, reason, page.more, is_paged=page.more > 0)
        new_id = rollback_run_id(state.run_id, number=number)
        task = parse_task(
            {
                "task_id": new_id,
                "parent_task_id": state.run_id,
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
        return Begun(new_id, submitted.status == "accepted", len(plan.orders), len(plan.left), plan.more)

    async def _continue(self, state: RunState) -> None:
        """Give a rollback its next pages, until it has something to do. What fails is tried again when the sweep comes back to the run."""
        try:
            while state.rollback is not None and wants_more(state):
                run_id = RunId(state.rollback.run_id)
                rolled_back = (await self._driver.folds.states([run_id])).get(run_id)
                if rolled_back is None:
                    raise NotFound("run", str(run_id))
                page = await self._page(run_id, await self._families.of(rolled_back, but=state.run_id), planned=planned_keys(state.rollback))
                state = await self._driver.execute(state.run_id, ContinueRollback(page, len(state.rollback.orders)))
        except OrchestrationError as error:
            log.warning("rollback %s does not go on yet: %s", state.run_id, error)

    async def _page(self, run_id: RunId, family: Family, *, planned: frozenset[str] = frozenset()) -> RollbackPage:
        await self._kinds.refresh()
        effects: list[RunEffect] = []
        for run in family.runs:
            events = await self._store.read_run(run.run_id)
            if not events:
                raise TooLate(f"run {run.run_id} is being archived: ask again when that is over")
            if erased_us := max((recorded.erased_us for recorded in events), default=0):
                raise ContractError(f"run {run.run_id} cannot be rolled back: {erased_text(erased_us)}, and how to take its effects back with it")
            effects += effects_of(run.run_id, events, await self._contained(events), by_clock=family.by_clock)
        return plan_page(run_id, effects, Known(family.undone, self._kinds.offers), planned=planned)

    async def _contained(self, events: Sequence[Recorded]) -> dict[Hash, frozenset[str]]:
        """Return for each setup of a run's tasks which tools reach nothing outside."""
        begun = (recorded.event() for recorded in events if recorded.type in _SETUPS)
        setups = {event.setup.ref for event in begun if isinstance(event, TaskStarted | TaskMoved)}
        blobs = await self._store.get_blobs([ref for ref in setups if ref is not None])
        decoded = {ref: msgspec.json.decode(data, type=Setup) for ref, data in blobs.items()}
        return {ref: frozenset(tool.definition.name for tool in setup.tools if tool.is_contained) for ref, setup in decoded.items()}


def _begun(state: RunState, *, is_new: bool) -> Begun:
    rollback = state.rollback
    assert rollback is not None
    return Begun(state.run_id, is_new, len(rollback.orders), len(rollback.left), rollback.more)
