"""The client's part about money: what may be spent, what is spent, and raising a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from crewlog.events.config import Config
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import BudgetView, RunView
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId


class ClientBudgets:
    """`client.budgets`: scopes of the client's tenant."""

    def __init__(self, config: Config, request: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]], read: Callable[[], Queries]) -> None:
        self._config, self._request, self._read = config, request, read

    async def scopes(self, *, every: bool = False) -> list[BudgetView]:
        """List budgets that have a limit and whose run or day is not over; with `every` also all others."""
        return await self._read().budgets(tenant=self._config.tenant, every=every)

    async def of_run(self, run_id: UUID) -> list[BudgetView]:
        """List all budgets that tasks of a run are charged to."""
        return await self._read().budgets(tenant=self._config.tenant, run_id=run_id)

    async def show(self, scope: str) -> BudgetView:
        """Return one budget.

        Raises:
            NotFound: nothing of this tenant was ever charged to such a scope.
        """
        found = await self._read().budgets(tenant=self._config.tenant, scope=scope)
        if not found:
            raise NotFound("budget", scope)
        return found[0]

    async def raise_limit(self, scope: str, *, hard_micro_usd: int, soft_micro_usd: int | None = None, reason: str = "", actor: str = "") -> BudgetView:
        """Raise the hard limit of a scope; runs that it held go on. Without a soft limit that becomes 70 % of the hard one.

        Raises:
            RequestRefused: there is no such budget.
            ContractError: its limit is that high already.
        """
        return await self._change("budgets.raise", scope, hard_micro_usd, soft_micro_usd, reason, actor)

    async def set_limit(self, scope: str, *, hard_micro_usd: int | None, soft_micro_usd: int | None = None, reason: str = "", actor: str = "") -> BudgetView:
        """Set the limits of a scope, upwards or downwards; None is no hard limit."""
        return await self._change("budgets.set", scope, hard_micro_usd, soft_micro_usd, reason, actor)

    async def _change(self, what: str, scope: str, hard: int | None, soft: int | None, reason: str, actor: str) -> BudgetView:
        amounts = {"hard_micro_usd": hard, "soft_micro_usd": soft}
        await self._request(what, {"scope": scope, **amounts, "reason": reason, "actor": actor or self._config.user})
        return await self.show(scope)

    async def held(self, run_id: RunId, waits_s: Sequence[float]) -> RunView | None:
        """Return a run that its stream says is held, as soon as the views say so, too; None when it was released meanwhile."""
        for wait_s in waits_s:
            await asyncio.sleep(wait_s)
            run = await self._read().run(str(run_id))
            if run.hold is not None:
                return run
        return None
