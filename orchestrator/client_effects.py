"""The client's part about effects: what runs did to the world, what is left of it, and taking it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal
from uuid import UUID

import msgspec

from crewlog.events.config import Config
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import EffectView
from crewlog.schemas.effects import LeftEffect
from crewlog.schemas.ids import RunId


class RollbackBegun(msgspec.Struct, frozen=True):
    """A rollback that is on its way as the run `run_id`: `orders` effects are to be taken back, `left` cannot be, `more` are looked at behind them."""

    run_id: RunId
    status: Literal["accepted", "duplicate"]
    orders: int
    left: int
    more: int = 0


class UndoneEffect(msgspec.Struct, frozen=True):
    """An effect, and the tool that took it back or could not, because of `error`."""

    run_id: UUID
    task_id: UUID
    call_id: str
    key: str
    tool: str
    resource: str
    undone_with: str
    error: str = ""


class RollbackResult(msgspec.Struct, frozen=True):
    """What a rollback of `run_id` has done so far. `more`: effects it has not looked at yet. Of many effects only the first are named; the counts
    are of all."""

    run_id: UUID
    number: int
    undone: tuple[UndoneEffect, ...]
    failed: tuple[UndoneEffect, ...]
    left: tuple[LeftEffect, ...]
    more: int
    undone_count: int = 0
    failed_count: int = 0
    left_count: int = 0


class ClientEffects:
    """`client.effects`."""

    def __init__(self, config: Config, request: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]], queries: Callable[[], Queries]) -> None:
        self._config, self._request, self._queries = config, request, queries

    async def all(self, run_id: UUID | None = None, *, open_only: bool = False, limit: int = 1_000) -> list[EffectView]:
        """List what calls did, in the order they began.

        Args:
            run_id: of this run alone; None for all of the tenant.
            open_only: only what is still there and can be taken back, or may have happened.
            limit: most of them; the latest ones.
        """
        return await self._queries().effects(self._config.tenant, run_id=run_id, open_only=open_only, limit=limit)

    async def roll_back(self, run_id: UUID, *, reason: str, actor: str = "") -> RollbackBegun:
        """Take back what a run did that has ended, and the runs that came from it, the last effect first. It is a run of its own: wait for it as for any other.

        Raises:
            RequestRefused: there is no such run, or it or one that came from it has not ended.
        """
        answer = await self._request("runs.rollback", {"run_id": run_id, "reason": reason, "actor": actor or self._config.user})
        return msgspec.convert({name: answer[name] for name in RollbackBegun.__struct_fields__}, RollbackBegun)

    async def result(self, rollback_id: UUID) -> RollbackResult | None:
        """Return what a rollback has done so far; None when the run is none."""
        found = (await self._request("runs.get", {"run_id": rollback_id}))["run"]["rollback"]
        return None if found is None else msgspec.convert(found, RollbackResult)
