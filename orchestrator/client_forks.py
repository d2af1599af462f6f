"""The client's part about forks: go on from an earlier place of a run, with something changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypedDict, Unpack
from uuid import UUID

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.config import Config
from crewlog.schemas.ids import RunId
from crewlog.schemas.trial import Effects


class ForkChanges(TypedDict, total=False):
    """What a fork does differently; see `forks.ForkRequest`."""

    reason: str
    task: str
    message: str
    results: Mapping[str, str]
    prompts: Mapping[str, str]
    models: str
    agent_version: str
    effects: Effects
    reads: bool
    changes: Mapping[str, Any]


class ForkView(msgspec.Struct, frozen=True):
    """A fork that is on its way. `at`: index of the last event it shares with its parent; `tasks`: keys of the tasks that go on."""

    run_id: RunId
    parent_run_id: RunId
    at: int
    tasks: tuple[str, ...]


class ClientForks:
    """`client.forks`."""

    def __init__(self, config: Config, clock: Clock, request: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._config, self._clock, self._request = config, clock, request

    async def fork(self, run_id: UUID, at: int, **changes: Unpack[ForkChanges]) -> ForkView:
        """Fork a run behind the event with index `at`, counted as `show --as events` does.

        Raises:
            RequestRefused: it cannot be forked there or so; the message says where or how it can.
        """
        # made here, so that a request that is sent again makes no second fork
        fork_id = str(self._clock.random_id())
        body = {"run_id": str(run_id), "at": at, "actor": self._config.user, "fork_id": fork_id, **changes}
        answer = await self._request("runs.fork", body)
        return ForkView(RunId(UUID(answer["run_id"])), RunId(UUID(answer["parent_run_id"])), answer["at"], tuple(answer["tasks"]))
