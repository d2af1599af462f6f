"""Defects for real processes: what `PLANTED` names in the environment of a process is broken in it before it begins.

Only processes that tests start look there (`support.nursery`); the product knows nothing of it. Each defect is one that a level of tests
claims to find, and `tests/process/test_planted.py` holds the level to that.
"""

from __future__ import annotations

import json
import os
import uuid
from typing import Any, Final

PLANTED: Final = "PLANTED"
"""Names of defects, separated by blanks."""


def plant(names: str) -> None:
    """Break this process."""
    for name in names.split():
        PLANTS[name]()


def effect_before_intent() -> None:
    """A call is made first, and only then recorded as begun."""
    from crewlog.agents.tool_calls import ToolCalls

    async def perform(self: Any, running: Any) -> None:
        finished = [await self._perform_one(one) for one in running]
        await self._journal.commit()
        for one, event in zip(running, finished, strict=True):
            await self._close(one, event)

    ToolCalls._perform = perform  # type: ignore[method-assign]


def key_of_the_process() -> None:
    """The key of a call is another one in every process that makes it."""
    from crewlog.agents import tool_calls, undo

    def key(task: Any, call_id: str) -> str:
        return f"{sound(task, call_id)}-{os.getpid()}"

    sound = undo.call_key
    where: tuple[Any, ...] = (undo, tool_calls)
    for module in where:
        module.call_key = key


def lost_tasks_go_on() -> None:
    """Whoever lost a task to another worker goes on with it."""
    from crewlog.agents.hold import Hold
    from crewlog.agents.journal import Journal
    from crewlog.events.store import Appended
    from crewlog.schemas.errors import ConflictError

    append = Journal._append

    async def unfenced(self: Any, request: Any, blobs: Any, before: Any) -> Appended:
        try:
            return await append(self, request, blobs, before)
        except ConflictError:
            first, count = request.writes[0].expected + 1, len(request.event_ids)
            return Appended(list(range(first, first + count)), list(range(count)))

    async def trusting(_: Hold) -> None:
        return

    Journal._append = unfenced  # type: ignore[method-assign]
    Hold.check = trusting  # type: ignore[method-assign]


def ack_before_append() -> None:
    """A worker acknowledges a task before anything of it is in the log."""
    from crewlog.agents.worker import Worker

    handle = Worker.handle

    async def hasty(self: Any, delivery: Any) -> None:
        await delivery.ack()
        await handle(self, delivery)

    Worker.handle = hasty  # type: ignore[method-assign]


def intake_before_append() -> None:
    """An orchestrator acknowledges a submission before it is in the log."""
    from crewlog.orchestrator.intake import Intake

    handle = Intake.handle

    async def hasty(self: Any, delivery: Any) -> None:
        await delivery.ack()
        await self._bus.flush()  # a process that is killed at once would not have acknowledged anything
        await handle(self, delivery)

    Intake.handle = hasty  # type: ignore[method-assign]


def overtaken_before_append() -> None:
    """A message that overtakes is deleted before it is in the log."""
    from crewlog.orchestrator.intake import Intake
    from crewlog.orchestrator.overtaking import Overtaker

    handle = Intake.handle

    async def hasty(self: Any, delivery: Any) -> None:
        if isinstance(delivery, Overtaker):
            await delivery.ack()
        await handle(self, delivery)

    Intake.handle = hasty  # type: ignore[method-assign]


def nothing_sent_again() -> None:
    """The sweep does not send again what nobody works on."""
    from crewlog.orchestrator.sweep import Sweep

    Sweep._check = Sweep._take_over = _nothing  # type: ignore[method-assign, assignment]


def nothing_settled() -> None:
    """What dead workers left reserved stays reserved."""
    from crewlog.orchestrator import sweep

    module: Any = sweep
    module.settle_left_over = _nothing


def the_dead_stay() -> None:
    """Nobody looks which workers have died."""
    from crewlog.orchestrator.silent_workers import SilentWorkers

    SilentWorkers.look = _nothing  # type: ignore[method-assign, assignment]


def a_run_for_each_message() -> None:
    """Whatever comes on the queue of submissions is a task of its own, also what has come before."""
    from crewlog.orchestrator import intake

    read = intake.read_submission

    def as_if_new(data: bytes, **known: Any) -> Any:
        task = json.loads(data)
        if isinstance(task, dict):  # what is no task is refused as before
            data = json.dumps({**task, "task_id": str(uuid.uuid4()), "run_id": None}).encode()
        return read(data, **known)

    intake.read_submission = as_if_new  # type: ignore[assignment]


def blind_repeat() -> None:
    """What may have happened is done again, and nobody is asked."""
    from crewlog.agents import tool_runner

    tool_runner.REPEATABLE = frozenset({"read", "idempotent", "compensable", "irreversible"})  # type: ignore[misc]


def gives_up_every_other() -> None:
    """Every other task of a worker that died is given up by the one that should go on with it."""
    from crewlog.agents.journal import Journal
    from crewlog.agents.worker import Worker
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.subjects import wake

    work = Worker._work

    async def faint(self: Any, task: Any, state: Any, attempt: int) -> bool:
        if state.phase != "working" or task.task_id.int % 2:
            return await work(self, task, state, attempt)
        await self._record_crash(task, attempt, ContractError("somebody else began it"), Journal(self._store, self._shop.clock, state))
        await self._bus.publish(wake(task.run_id))
        return True

    Worker._work = faint  # type: ignore[method-assign]


def settled_for_less() -> None:
    """The ledger is told of one micro-USD less than a call cost."""
    from crewlog.agents import journal
    from crewlog.events.store import Settlement

    def less(reservation_id: uuid.UUID, actual_micro_usd: int | None) -> Settlement:
        return Settlement(reservation_id, actual_micro_usd and actual_micro_usd - 1)

    journal.Settlement = less  # type: ignore[assignment, misc]


def views_for_nothing() -> None:
    """What calls cost does not get into the view of their task."""
    from crewlog.projections import calls

    bill = calls._bill

    def free(task: Any, *rest: Any) -> Any:
        call, task.row.cost_micro_usd = bill(task, *rest), 0
        return call

    calls._bill = free


async def _nothing(*_: Any, **__: Any) -> int:
    return 0


PLANTS: Final = {
    defect.__name__: defect
    for defect in (
        *(effect_before_intent, key_of_the_process, lost_tasks_go_on, ack_before_append, intake_before_append, nothing_sent_again, nothing_settled),
        *(overtaken_before_append, a_run_for_each_message, blind_repeat, gives_up_every_other, settled_for_less, the_dead_stay, views_for_nothing),
    )
}
