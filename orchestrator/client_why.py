"""The client's part about waiting: what a run or task waits for, asked of everybody who may know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple
from uuid import UUID

from crewlog.events.bus import Bus
from crewlog.orchestrator.why import Held, Known, Wait, why_imported, why_run, why_task
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import AgentView, RunView, TaskView
from crewlog.projections.runs import SHADOW
from crewlog.schemas.errors import ContractError, NotAuthorised, NotFound, Unavailable
from crewlog.schemas.ids import RunId
from crewlog.schemas.subjects import control_worker

WAITING_MAX: Final = 10_000
"""Unfinished tasks among which one is looked for by the first characters of its id."""
WORKER_ANSWERS_WITHIN_S: Final = 2.0

Request = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Explained(NamedTuple):
    """An unfinished task, or an open run without one, and what it waits for. Several when two things are in the way one after the other."""

    run_id: UUID
    task: TaskView | None
    wait: Wait
    workers: tuple[str, ...] = ()
    """Those that may take the task and answer."""


class ClientWhy:
    """`client.waits`: asks the views, the orchestrators and the workers."""

    def __init__(self, bus: Bus, request: Request, read: Callable[[], Queries], find_run: Callable[[str], Awaitable[RunId]]) -> None:
        self._bus, self._request, self._read, self._find_run = bus, request, read, find_run

    async def why(self, name: UUID | str) -> list[Explained]:
        """Say what every unfinished task of a run, or the one unfinished task, that `name` means waits for; nothing when all has ended.

        Raises:
            NotFound: no run and no unfinished task is called so, or several.
            Unavailable: the log cannot be reached.
        """
        run, tasks = await self._meant(str(name))
        if run.finished_at is None and await self._read().is_imported(run.run_id):
            return [Explained(run.run_id, None, why_imported())]
        found = await asyncio.gather(self._workers(), self._queue(run.run_id))
        waits = []
        for task in tasks:
            known = await self._known(run, task, *found)
            waits.append(Explained(run.run_id, task, why_task(task, known), tuple(worker.worker for worker in known.crew)))
        return waits if waits or run.finished_at is not None else [Explained(run.run_id, None, why_run(run))]

    async def workers(self) -> list[AgentView]:
        """List the agents that are up, as they registered: one that was killed could not say that it stops, but answers no more."""
        listed = await self._read().agents(running_only=True)
        answering = await asyncio.gather(*(self._ask(worker.worker, {}) for worker in listed))
        return [worker for worker, answer in zip(listed, answering, strict=True) if answer is not None]

    async def _meant(self, name: str) -> tuple[RunView, Sequence[TaskView]]:
        try:
            run_id = await self._find_run(name)
        except NotFound as not_a_run:
            found = [t for t in await self._read().waiting(limit=WAITING_MAX) if str(t.task_id).startswith(name.lower())]
            if len(found) != 1:
                raise (NotFound("task", name, candidates=tuple(str(t.task_id) for t in found)) if found else not_a_run) from None
            return await self._read().run(str(found[0].run_id)), found
        run = await self._read().run(str(run_id))
        return run, [task for task in await self._read().tasks(run_id) if task.waiting_reason is not None]

    async def _workers(self) -> tuple[list[AgentView], list[AgentView]]:
        return await self.workers(), await self._read().agents()

    async def _queue(self, run_id: UUID) -> dict[str, Any] | None:
        try:
            return await self._request("runs.queue", {"run_id": str(run_id)})
        except Unavailable:
            return None

    async def _known(self, run: RunView, task: TaskView, workers: tuple[list[AgentView], list[AgentView]], queue: dict[str, Any] | None) -> Known:
        is_shadow = run.source == SHADOW
        version = "" if queue is None else queue.get("needs", {}).get(str(task.task_id), "")
        of_kind, ever = [[w for w in found if (w.kind, w.is_shadow) == (task.kind, is_shadow)] for found in workers]
        crew = [w for w in of_kind if version in ("", w.version)]
        gone = max(ever, key=lambda w: (w.stopped_at or w.started_at, w.worker), default=None)
        held = None if queue is None else queue["held"].get(str(task.task_id))
        versions = [w.version for w in of_kind]
        known = Known(is_shadow=is_shadow, version=version, versions=versions, crew=crew, gone=gone, out=None if queue is None else queue["out"])
        if held is not None:
            known = known._replace(held=Held(held["ahead"], held["in_flight"], held["size"], held["is_limited"]))
        if task.status == "running" and task.worker is not None:
            answer = await self._ask(task.worker, {"task_id": str(task.task_id)})
            known = known._replace(holds=None if answer is None else answer)
        elif task.status == "suspended":
            asked = await self._read().approvals(run_id=task.run_id)
            known = known._replace(approvals=[approval for approval in asked if approval.task_id == task.task_id])
        elif task.status == "retrying":
            shut = [p for p in await self._read().providers() if p.kind == task.kind and p.state == "open" and p.worker in {w.worker for w in crew}]
            known = known._replace(providers=shut)
        return known

    async def _ask(self, worker: str, body: dict[str, str]) -> bool | None:
        """Ask a worker what it holds; None when it does not answer."""
        with suppress(Unavailable, ContractError):  # the name of a worker is what one has written
            try:
                reply = await self._bus.request(control_worker(worker), json.dumps(body).encode(), timeout_s=WORKER_ANSWERS_WITHIN_S)
            except NotAuthorised:  # a NATS server whose permissions are older than that question
                return True
            return bool(json.loads(reply.data).get("holds"))
        return None
