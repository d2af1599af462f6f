"""Budgets: what a model call is charged to, and how much may be spent there.

A scope is the name of a budget. A task stream is bound to its scopes when it is opened, and every model call of the task is charged to
all of them: reserved at its worst price before it is made, settled with its real price behind it. Amounts are micro-USD.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import lru_cache
from typing import Final

import msgspec

from crewlog.schemas.ids import RunId, TaskId, id_text

MICRO_USD_MAX: Final = 10**15
"""Largest amount and limit: a thousand million USD. Sums of thousands of them still fit the log's 64-bit integers."""
SCOPE_CHARS_MAX: Final = 300


class ScopeLimit(msgspec.Struct, frozen=True):
    """How much may be spent in a scope. Over the soft limit there are warnings, over the hard limit there is nothing. None is no limit."""

    scope: str
    soft_micro_usd: int | None
    hard_micro_usd: int | None


def run_scope(run_id: RunId) -> str:
    """Name the budget of one run."""
    return "run/" + id_text(run_id)


def tree_scope(root: TaskId) -> str:
    """Name the budget of a task and all tasks that come from it."""
    return "tree/" + id_text(root)


def kind_scope(tenant: str, kind: str, day: str) -> str:
    """Name the budget of a tenant's agents of one kind on one day."""
    return f"kind/{tenant}/{kind}/{day}"


def user_scope(tenant: str, user: str, day: str) -> str:
    """Name the budget of one user on one day."""
    return f"user/{tenant}/{user}/{day}"


def tenant_scope(tenant: str, day: str) -> str:
    """Name the budget of a tenant on one day."""
    return f"tenant/{tenant}/{day}"


def trial_scope(tenant: str, name: str) -> str:
    """Name the budget of what a tenant tries out under a name: an evaluation, or the shadow of a kind."""
    return f"trial/{tenant}/{name}"


def utc_day(time_us: int) -> str:
    """Return the day that daily scopes end in, as `yyyy-mm-dd` in UTC, for a time in microseconds since 1970."""
    return _day(time_us // 86_400_000_000)


@lru_cache(maxsize=16)  # asked for with every task that is opened, and nearly always about today
def _day(number: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=number)).isoformat()
