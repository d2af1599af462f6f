"""Change what may be spent, for people: the limits of a scope, with who and why on record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from uuid import UUID

from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.events.limits import soft_of
from crewlog.events.store import ANY, AppendRequest, BudgetState, EventStore, Write
from crewlog.orchestrator.folds import Folds
from crewlog.orchestrator.terms import run_with
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import ConflictError, ContractError, NotFound
from crewlog.schemas.ids import budget_stream
from crewlog.schemas.system_events import BudgetChanged
from crewlog.schemas.usage import format_usd

_OF_TENANT = ("kind", "user", "tenant", "trial")


class Budgets:
    """The limits of scopes of any tenant."""

    def __init__(self, store: EventStore, clock: Clock, folds: Folds, *, on_change: Callable[[], None]) -> None:
        """Prepare.

        Args:
            on_change: called when a limit was changed: runs that it held may go on.
        """
        self._store, self._clock, self._folds, self._on_change = store, clock, folds, on_change

    async def raise_limit(self, tenant: str, scope: str, *, hard: int, soft: int | None, actor: str, reason: str) -> BudgetState:
        """Raise the hard limit of a scope, in micro-USD, and set its soft limit (None: 70 % of the hard one).

        Returns:
            the budget as it is then.

        Raises:
            NotFound: nothing of this tenant was ever charged to such a scope.
            ContractError: the limit would not be higher than it is, or the soft limit is above it.
            Unavailable: the log cannot be reached; asking again is safe.
        """
        while True:
            said = await self._store.read_last([budget_stream(scope)], 1)
            before = await self._look(tenant, scope)
            if before.hard is None:
                raise ContractError(f"budget {scope} has no hard limit that could be raised; set one: crewlog budget set {scope} --hard USD")
            if hard <= before.hard:
                is_now, wanted = format_usd(before.hard), format_usd(hard)
                raise ContractError(f"budget {scope} is limited to {is_now}; {wanted} would not raise it", problems=(("/hard_micro_usd", "too low"),))
            limit = ScopeLimit(scope, soft_of(hard) if soft is None else soft, hard)
            with contextlib.suppress(ConflictError):  # somebody has changed it since: what would have raised it then may lower it now
                return await self._change(before, limit, actor, reason, expected=said[-1].version if said else 0)

    async def set_limit(self, tenant: str, scope: str, *, hard: int | None, soft: int | None, actor: str, reason: str) -> BudgetState:
        """Set the limits of a scope to whatever they shall be, also lower than what is spent: then nothing more starts. None: no hard limit.

        Errors are those of `raise_limit`.
        """
        before = await self._look(tenant, scope)
        return await self._change(before, ScopeLimit(scope, soft_of(hard) if soft is None else soft, hard), actor, reason)

    async def _change(self, before: BudgetState, limit: ScopeLimit, actor: str, reason: str, *, expected: int = ANY) -> BudgetState:
        scope, soft, hard = limit.scope, limit.soft_micro_usd, limit.hard_micro_usd
        if soft is not None and hard is not None and soft > hard:
            raise ContractError(f"a soft limit of {soft} micro-USD is above the hard limit of {hard}", problems=(("/soft_micro_usd", "too high"),))
        write = Write(budget_stream(scope), (BudgetChanged(scope, soft, hard, actor, reason),), expected)
        if faults.hook is not None:
            faults.hook("before_budget_change")
        await self._store.append(AppendRequest((write,), (self._clock.new_id(),), self._clock.now_us(), limits=(limit,)))
        if faults.hook is not None:
            faults.hook("after_budget_change")
        self._on_change()
        return before._replace(hard=hard, soft=soft)

    async def _look(self, tenant: str, scope: str) -> BudgetState:
        found = (await self._store.budgets([scope])).get(scope) if await self._is_of(tenant, scope) else None
        if found is None:
            raise NotFound("budget", scope)
        return found

    async def _is_of(self, tenant: str, scope: str) -> bool:
        """Say whether a scope is this tenant's; another tenant's is as good as none."""
        of, _, rest = scope.partition("/")
        if of in _OF_TENANT:
            return rest.partition("/")[0] == tenant
        try:
            named = UUID(rest)
        except ValueError:
            return False
        return await run_with(named, tenant, self._store, self._folds) is not None
