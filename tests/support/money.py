"""Small requests about money."""

from __future__ import annotations

import msgspec
from support.logs import asked, request, started, to_task

from crewlog.events.store import ANY, NO_STREAM, AppendRequest, Reservation, Settlement, Write
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import OverBudget
from crewlog.schemas.ids import RunId, TaskId, budget_stream, reservation_id, spend_stream, task_stream
from crewlog.schemas.system_events import BudgetChanged, CallSettled
from crewlog.schemas.task_events import TaskOpened
from crewlog.schemas.usage import Price, Usage


def scoped(*limits: ScopeLimit) -> tuple[ScopeLimit, ...]:
    return limits


def opened(task_id: TaskId, *limits: ScopeLimit, kind: str = "research") -> AppendRequest:
    """Open a task that is charged to these scopes."""
    return request(Write(task_stream(task_id), [TaskOpened(kind, "step", 0, msgspec.Raw(b"{}"))], NO_STREAM, kind, limits), task_id=task_id)


def calling(task_id: TaskId, amount: int, call_id: str = "m1-1", *, expected: int = ANY) -> AppendRequest:
    """Begin a model call that may cost `amount` micro-USD."""
    return to_task(task_id, asked(call_id), expected=expected)._replace(reserve=Reservation(reservation_id(task_id, call_id), amount))


def settling(task_id: TaskId, actual: int | None, call_id: str = "m1-1", *, expected: int = ANY) -> AppendRequest:
    """Say what a call cost; None gives its money back."""
    return to_task(task_id, started(), expected=expected)._replace(settle=[Settlement(reservation_id(task_id, call_id), actual)])


def settling_elsewhere(task_id: TaskId, actual: int, call_id: str = "m1-1") -> AppendRequest:
    """Say what a call cost beside its task's stream."""
    event = CallSettled(task_id, RunId(task_id), call_id, "provider", "model", Usage(), Price(actual, "config"))
    return request(Write(spend_stream(task_id), [event]), task_id=task_id)._replace(settle=[Settlement(reservation_id(task_id, call_id), actual)])


def changing(*limits: ScopeLimit) -> AppendRequest:
    """Change limits as a person does."""
    writes = [Write(budget_stream(limit.scope), [BudgetChanged(limit.scope, limit.soft_micro_usd, limit.hard_micro_usd, "anna")]) for limit in limits]
    return request(*writes)._replace(limits=limits)


def over(answer: object) -> tuple[str, int, int, int]:
    """Take a refusal apart."""
    assert isinstance(answer, OverBudget)
    return answer.scope, answer.limit_micro_usd, answer.used_micro_usd, answer.needed_micro_usd
