"""The client's part about goals that recur."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal
from uuid import UUID

import msgspec

from crewlog.events.config import Config
from crewlog.orchestrator.client_given import must_be
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.system_events import CatchUp
from crewlog.schemas.task import AgentTask


class Firing(msgspec.Struct, frozen=True):
    """The last time a run was submitted, or its task refused with `error`. `missed`: due times before it that have no run."""

    due_us: int
    run_id: UUID
    missed: int
    error: str


class ScheduleView(msgspec.Struct, frozen=True):
    """One schedule. `next_us`: when it is due next, in microseconds since 1970; None while it is paused, or where its time
    zone is not known."""

    name: str
    status: Literal["active", "paused", "removed"]
    cron: str
    zone: str
    catch_up: CatchUp
    goal: str
    next_us: int | None
    last: Firing | None


class ClientSchedules:
    """`client.schedules`: those of the client's tenant."""

    def __init__(self, config: Config, request: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._config, self._request = config, request

    async def add(self, name: str, task: AgentTask, *, cron: str, zone: str = "UTC", catch_up: CatchUp = "one", actor: str = "") -> ScheduleView:
        """Let a task recur; make it with `client.prepare`. Adding the same again is no news.

        Raises:
            ContractError: cron, zone or task cannot be understood, or the task could not be carried out.
            RequestRefused: there is another schedule of this name.
        """
        must_be(task, AgentTask, "what recurs is an AgentTask, as `await client.prepare(GOAL)` returns it")
        recorded = msgspec.Raw(sparse_json(task, without={"run_id"}))
        body = {"name": name, "task": recorded, "cron": cron, "zone": zone, "catch_up": catch_up, "actor": actor or self._config.user}
        return _view((await self._request("schedules.add", body))["schedule"])

    async def all(self) -> list[ScheduleView]:
        """List schedules, by name."""
        return [_view(schedule) for schedule in (await self._request("schedules.list", {}))["schedules"]]

    async def change(self, name: str, verb: Literal["pause", "resume", "remove"], *, reason: str = "", actor: str = "") -> ScheduleView:
        """Pause, resume or remove a schedule; runs under way are not touched.

        Raises:
            RequestRefused: there is no such schedule.
        """
        body = {"name": name, "verb": verb, "reason": reason, "actor": actor or self._config.user}
        return _view((await self._request("schedules.change", body))["schedule"])

    async def run_now(self, name: str, *, actor: str = "") -> RunId:
        """Submit a run now; when it is due otherwise stays as it is.

        Raises:
            RequestRefused: there is no such schedule.
            ContractError: its task is refused by now.
        """
        answer = await self._request("schedules.run", {"name": name, "actor": actor or self._config.user})
        if answer["error"]:
            raise ContractError(answer["error"])
        return RunId(UUID(answer["run_id"]))


def _view(fields: dict[str, Any]) -> ScheduleView:
    return msgspec.convert(fields, ScheduleView)
