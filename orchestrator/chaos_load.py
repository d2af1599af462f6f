"""The load of a chaos run: so many runs in flight, handed in through both doors and asked about until each has its end in the log.

A submission that was not answered is sent again under the same task id, as clients are told to do. What was answered with a yes is
accepted: from then on the crew owes it an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Container
from typing import Final
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.store import EventStore
from crewlog.orchestrator.chaos_agent import KIND
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.commands import Answer
from crewlog.schemas import subjects
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId, TaskId, idempotency_key, run_stream
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TERMINAL_TYPES

SCRIPTS: Final = ("stamp finish", "send finish", "stamp send finish", "stamp+stamp stamp finish", "stamp send+stamp finish")
PLANS: Final[tuple[tuple[tuple[str, ...], ...], ...]] = (((),), ((), ("a",)), ((), (), ("a", "b")))
"""Which steps of a plan depend on which: one, two in a row, two side by side and one behind both."""
RETRY_S: Final = 0.2
LOOK_S: Final = 0.2
"""How often the log is asked who has ended, in seconds."""
ASK_S: Final = 0.5
"""How often somebody looks whether a person is asked, in seconds."""
QUEUE_SHARE: Final = 0.5
"""Part of the runs that comes as a message on `tasks.>` instead of a request."""


class Load:
    """Clients that each have one run in flight, and the person who is asked what cannot be repeated."""

    def __init__(self, client: Client, bus: Bus, store: EventStore, rng: random.Random, *, in_flight: int, arrived: Container[str]) -> None:
        """Prepare.

        Args:
            in_flight: runs that are open at any time.
            arrived: idempotency keys of the effects that reached the outside world; the person may look there.
        """
        self._arrived = arrived
        self.accepted: dict[RunId, AgentTask] = {}
        self.ended: dict[RunId, str] = {}
        """Run -> type of its end."""
        self.resolved: Counter[Answer] = Counter()
        """What the person said when asked whether something happened that cannot be repeated."""
        self._client, self._bus, self._store, self._rng, self._in_flight = client, bus, store, rng, in_flight
        self._waiting: dict[RunId, asyncio.Event] = {}
        self._stopping = False

    async def run(self) -> None:
        """Keep runs in flight until `stop_submitting`, and return when all that were begun have ended."""
        tasks = [asyncio.create_task(work) for work in (self._clients(), self._watch(), self._answer_for_people())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop_submitting(self) -> None:
        """Begin no further run."""
        self._stopping = True

    async def _clients(self) -> None:
        await asyncio.gather(*(self._one_after_another() for _ in range(self._in_flight)))

    async def _one_after_another(self) -> None:
        while not self._stopping:
            task, by_queue = self._task(), self._rng.random() < QUEUE_SHARE
            await self._submit(task, by_queue=by_queue)
            run_id = RunId(task.run_id)
            self.accepted[run_id], ended = task, asyncio.Event()
            self._waiting[run_id] = ended
            await ended.wait()

    def _task(self) -> AgentTask:
        rng = self._rng
        steps = [
            {"key": key, "type": KIND, "objective": rng.choice(SCRIPTS), "depends_on": list(before)}
            for key, before in zip("abc", rng.choice(PLANS), strict=False)
        ]
        return parse_task({"task_id": UUID(int=rng.getrandbits(128), version=4), "type": "run", "objective": "chaos", "plan": {"steps": steps}})

    async def _submit(self, task: AgentTask, *, by_queue: bool) -> None:
        while True:
            try:
                if by_queue:
                    await self._bus.enqueue(subjects.tasks(task.tenant, task.type), msgspec.json.encode(task), message_id=str(task.task_id))
                else:
                    await self._client.submit(task)
            except OrchestrationError:
                await asyncio.sleep(RETRY_S)  # not answered: it may or may not be in the log, and is sent again with the same id
            else:
                return

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(OrchestrationError):
                found = await self._store.read_streams({run_stream(run_id): 0 for run_id in self._waiting}, types=TERMINAL_TYPES)
                for recorded in found:
                    if recorded.run_id is not None and (waiting := self._waiting.pop(RunId(recorded.run_id), None)) is not None:
                        self.ended[RunId(recorded.run_id)] = recorded.type
                        waiting.set()

    async def _answer_for_people(self) -> None:
        """Look at the receiver and say what was there. What was not there may still come, from a worker that is only stopped: it stays unknown."""
        while True:
            await asyncio.sleep(ASK_S)
            with contextlib.suppress(OrchestrationError):
                for approval in await self._client.approvals():
                    key = idempotency_key(RunId(approval.run_id), TaskId(approval.task_id), approval.call_id)
                    answer: Answer = "happened" if key in self._arrived else "give_up"
                    with contextlib.suppress(OrchestrationError):  # the views lag: it may be decided already
                        await self._client.decide(RunId(approval.run_id), approval.approval_id, answer, actor="chaos")
                        self.resolved[answer] += 1
