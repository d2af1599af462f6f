"""Runs that a budget holds: find those whose budget has room again and let them go on.

Room comes from a person who raises the limit, or from calls that turned out cheaper than what was reserved for them: tasks that work at the
same time may be refused together although each of them would fit. So a budget is looked at as soon as it holds a run, and by every sweep:
nobody need tell, and a process that dies in between only delays it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from crewlog.events.store import BudgetState, EventStore
from crewlog.orchestrator.commands import ReleaseRun
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.run import RunState, starving
from crewlog.schemas.errors import ContractError, NotAuthorised, OrchestrationError
from crewlog.schemas.ids import RunId

log = logging.getLogger(__name__)


class Holds:
    """Looks at the budgets that hold runs."""

    def __init__(self, store: EventStore, driver: Driver) -> None:
        self._store, self._driver = store, driver
        self._seen: dict[RunId, int] = {}
        """Held runs whose budget was looked at -> since when they are held."""
        self._looks: set[asyncio.Task[None]] = set()

    def note(self, state: RunState) -> None:
        """Take note of a run; the first time that it is held its budget is looked at."""
        hold = state.hold if state.status == "open" else None
        if hold is None:
            self._seen.pop(state.run_id, None)
        elif self._seen.get(state.run_id) != hold.since_us:
            self._seen[state.run_id] = hold.since_us
            look = asyncio.create_task(self._look(state), name="holds")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def stop(self) -> None:
        """Give up what is under way; the sweep of another process, or of the next one, comes back to it. Safe to call twice."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    async def _look(self, state: RunState) -> None:
        try:
            await self.release([state])
        except OrchestrationError as error:
            log.warning("run %s is held, the sweep looks at its budget: %s", state.run_id, error)

    async def release(self, states: Iterable[RunState]) -> None:
        """Let those of these runs go on that a budget holds which has room for what they need of it.

        Raises:
            Unavailable: the log cannot be reached.
        """
        held = [state for state in states if state.hold is not None]
        scopes = sorted({task.shortfall.scope for state in held for task in starving(state) if task.shortfall is not None})
        if not scopes:
            return
        budgets = await self._store.budgets(scopes)
        for state in held:
            command = release_of(state, budgets)
            if command is None:
                continue
            try:
                await self._driver.execute(state.run_id, command)
            except (ContractError, NotAuthorised) as error:  # one run that this program cannot decide about must not hold up the others
                log.warning("run %s stays held: %s", state.run_id, error)
            else:
                log.info("run %s goes on: %s has room", state.run_id, command.scope)


def needed_of(held: Mapping[RunId, Sequence[tuple[str, int]]]) -> dict[str, int]:
    """Return budgets that hold runs -> the least that any of them needs, in micro-USD. Pure."""
    needed: dict[str, int] = {}
    for short in held.values():
        for scope, micro_usd in short:
            needed[scope] = min(micro_usd, needed.get(scope, micro_usd))
    return needed


def release_of(state: RunState, budgets: Mapping[str, BudgetState]) -> ReleaseRun | None:
    """Return the command that lets a held run go on, or None while no budget that holds it has room. Pure."""
    for task in starving(state):
        short = task.shortfall
        budget = budgets.get(short.scope) if short is not None else None
        if short is None or budget is None:
            continue
        used = budget.spent + budget.reserved
        if budget.hard is None or used + short.needed_micro_usd <= budget.hard:
            return ReleaseRun(short.scope, budget.hard, used)
    return None
