"""What somebody let a run spend since it was submitted: it could not have been as it was without, nor can what is made of it."""

from __future__ import annotations

from typing import Final

from crewlog.events.store import EventStore
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import RunId, budget_stream, run_stream
from crewlog.schemas.run_events import RunHeld, RunReleased
from crewlog.schemas.system_events import BudgetChanged
from crewlog.schemas.task import Budget

_TELLING: Final = frozenset({BudgetChanged.__name__, RunHeld.__name__, RunReleased.__name__})


async def raised_budget(store: EventStore, run_id: RunId) -> Budget | None:
    """Return the limits of a run as somebody set them last; None when they are those that it was submitted with.

    A log that a run was imported to, and a file, have no budgets: there it is told by what let the run go on.

    Raises:
        Unavailable: the log cannot be reached.
    """
    scope, found, seen, was = run_scope(run_id), None, None, None
    for recorded in await store.read_streams({budget_stream(scope): 0, run_stream(run_id): 0}, types=_TELLING):
        match recorded.event():
            case BudgetChanged() as changed:
                found = Budget(hard_micro_usd=changed.hard_micro_usd, soft_micro_usd=changed.soft_micro_usd)
            case RunHeld() as held if held.scope == scope:
                was = held.limit_micro_usd
            case RunReleased() as released if released.scope == scope and released.limit_micro_usd != was:
                seen = Budget(hard_micro_usd=released.limit_micro_usd)
            case _:
                pass
    return found or seen
