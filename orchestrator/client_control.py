"""The client's part by which operators steer: pause, resume, quarantine, release and terminate; and workers that are to leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, Literal, Protocol
from uuid import UUID

import msgspec

from crewlog.events.config import Config
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.client_given import must_be
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import AgentView
from crewlog.schemas.task_events import TERMINAL_TYPES

RUNS_PER_REQUEST: Final = 128
SYSTEM: Final = "system"

Verb = Literal["pause", "resume", "quarantine", "release", "terminate"]
ScopeVerb = Literal["pause", "resume", "quarantine", "release"]


class Request(Protocol):
    """How a client asks the orchestrators. `tenant`: other than its own."""

    async def __call__(self, what: str, body: dict[str, Any], *, tenant: str | None = None) -> dict[str, Any]: ...


class FoundRun(msgspec.Struct, frozen=True):
    """An open run that matches."""

    run_id: UUID
    status: str
    objective: str
    submitted_us: int


class Steered(msgspec.Struct, frozen=True):
    """What became of one run. `changed`: False when it was so already. `error`: why nothing was done."""

    run_id: UUID
    status: str
    changed: bool
    error: str


class InForce(msgspec.Struct, frozen=True):
    """One pause or quarantine. `number` names the command."""

    scope: str
    number: int
    actor: str
    reason: str
    since_us: int


class ClientControl:
    """`client.control`."""

    def __init__(self, config: Config, request: Request) -> None:
        self._config, self._request = config, request

    async def find(
        self, *, tenant: str | None = None, kind: str | None = None, status: Sequence[str] = (), older_than_s: float | None = None
    ) -> AsyncIterator[FoundRun]:
        """Yield the open runs that fulfil every condition.

        Args:
            tenant: other than the client's own.
            kind: they have something to do for this agent kind.
            status: one of these, as in the views.
            older_than_s: they were submitted at least so long ago, in seconds.
        """
        must_be(status, Sequence, "status is a list of states", but=(str, bytes))
        after: str | None = None
        while True:
            asked = {"kind": kind, "status": list(status), "older_than_s": older_than_s, "after": after}
            answer = await self._request("runs.find", asked, tenant=tenant)
            for run in msgspec.convert(answer["runs"], list[FoundRun]):
                yield run
            after = answer["next"]
            if after is None:
                return

    async def runs(self, verb: Verb, run_ids: Sequence[UUID], *, reason: str = "", actor: str = "", tenant: str | None = None) -> list[Steered]:
        """Do something to runs and return what became of each, in their order.

        `pause`: what is under way ends, nothing new starts, time stands still. `quarantine`: the end of the run is kept back until `release`.
        `terminate`: model calls under way are cut off, the run ends as cancelled.
        """
        must_be(run_ids, Sequence, "run_ids is a list of ids", but=(str, bytes))
        done: list[Steered] = []
        for first in range(0, len(run_ids), RUNS_PER_REQUEST):
            body = {"run_ids": run_ids[first : first + RUNS_PER_REQUEST], "reason": reason, "actor": actor or self._config.user}
            done += msgspec.convert((await self._request(f"runs.{verb}", body, tenant=tenant))["runs"], list[Steered])
        return done

    async def tenant(self, verb: ScopeVerb, tenant: str | None = None, *, reason: str = "", actor: str = "") -> bool:
        """Do something to all runs of a tenant, also to those that come later; False when it was so already."""
        body = {"reason": reason, "actor": actor or self._config.user}
        return bool((await self._request(f"tenants.{verb}", body, tenant=tenant))["changed"])

    async def kind(self, verb: ScopeVerb, kind: str, *, reason: str = "", actor: str = "") -> bool:
        """Do something to all tasks of an agent kind, whoever's they are; False when it was so already.

        A quarantine of a kind is one of all runs that it works for.
        """
        body = {"kind": kind, "reason": reason, "actor": actor or self._config.user}
        return bool((await self._request(f"kinds.{verb}", body, tenant=SYSTEM))["changed"])

    async def drain(self, worker: str, *, reason: str = "", actor: str = "") -> bool:
        """Let a worker take no further task, end or hand back what it has, and leave; False when it was told before.

        Raises:
            RequestRefused: no such worker answers.
        """
        body = {"worker": worker, "reason": reason, "actor": actor or self._config.user}
        return bool((await self._request("workers.drain", body, tenant=SYSTEM))["changed"])

    async def in_force(self) -> tuple[list[InForce], list[InForce]]:
        """Return the pauses and the quarantines in force: those of the client's tenant and its runs, and of all kinds."""
        answer = await self._request("controls.list", {})
        return msgspec.convert(answer["pauses"], list[InForce]), msgspec.convert(answer["quarantines"], list[InForce])


async def ends_later(store: EventStore, views: Queries, held: Recorded, follow_within_s: Sequence[float]) -> bool:
    """Say whether a run whose results were held has its end by now. If not, the views know that they are held when this returns.

    Args:
        follow_within_s: waits between looks at the views, in seconds.
    """
    if await store.read_streams({held.stream: held.version}, types=TERMINAL_TYPES):
        return True
    for wait_s in follow_within_s:
        await asyncio.sleep(wait_s)
        if (await views.run(held.stream.removeprefix("run/"))).status == "quarantined":
            break
    return False


async def wait_gone(workers: Sequence[str], listed: Callable[[], Awaitable[Sequence[AgentView]]], *, look_s: float = 0.2) -> None:
    """Wait until none of these workers answers any more.

    Args:
        listed: returns the workers that do; `client.workers`.
    """
    while True:
        if not {worker.worker for worker in await listed()} & set(workers):
            return
        await asyncio.sleep(look_s)
