"""What becomes of a task whose message nobody can handle: it fails with its history, others go on, and what did nothing wrong comes again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

import msgspec
import pytest
from support.crew import Crew
from support.decider import a_plan

from crewlog.events import slots
from crewlog.events.bus import Delivery, DeliveryHandler
from crewlog.events.letters import Cause, dead_letters
from crewlog.events.memory_bus import MemoryBus
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, TaskId, run_stream, task_stream
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TaskCompleted, TaskFailed
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NAK_DELAY_MAX_S", 0.01)


@asynccontextmanager
async def workers(crew: Crew, handle: DeliveryHandler) -> AsyncIterator[MemoryBus]:
    """Run workers of kind data that treat messages as the test says."""
    await crew.bus.ensure_kind("data")
    consuming = await crew.bus.consume("WORK", {"data-normal": 0}, handle, slots=8)
    try:
        yield crew.bus
    finally:
        await consuming.stop(grace_s=1)


async def finish(crew: Crew, delivery: Delivery) -> None:
    task = parse_task(delivery.data)
    await crew.says(task, TaskCompleted(Outcome(f"result of {task.key}"), Usage(1, 1), 1, 1, 0))
    await delivery.ack()


def failure(crew: Crew, task_id: TaskId) -> TaskFailed:
    event = crew.log.streams[task_stream(task_id)].events[-1].event()
    assert isinstance(event, TaskFailed)
    return event


async def test_a_poison_message_fails_its_task_and_blocks_no_other() -> None:
    crew = Crew()

    async def handle(delivery: Delivery) -> None:
        if parse_task(delivery.data).key == "a":
            raise ValueError("cannot digest this")
        await finish(crew, delivery)

    async with crew.orchestrator(), workers(crew, handle):
        run_id = await crew.submit(plan=a_plan(a="data", b="data"), synthesis="collect")
        end = await crew.ended(run_id)

    reviewed = {msgspec.json.decode(r.data)["key"]: msgspec.json.decode(r.data) for r in crew.events(run_id) if r.type == "TaskReviewed"}
    assert reviewed["b"]["verdict"] == "accepted"
    assert reviewed["a"]["error"]["code"] == "poison"
    error = failure(crew, TaskId(UUID(reviewed["a"]["task_id"]))).error
    assert error.message == "its message was handed out 5 times; the last of it: ValueError: cannot digest this"
    assert not error.retryable
    assert end.type in ("RunCompleted", "RunFailed")
    [letter] = crew.broker.messages("DLQ")
    assert (letter.subject, letter.headers["Run-Id"]) == ("dlq.data", str(run_id))


async def test_a_message_that_met_an_outage_is_not_poison() -> None:
    crew = Crew()
    handed: list[int] = []

    async def handle(delivery: Delivery) -> None:
        handed.append(delivery.deliveries)
        if len(handed) <= 12:
            raise Unavailable("the log is away")
        await finish(crew, delivery)

    async with crew.orchestrator(), workers(crew, handle):
        run_id = await crew.submit(type="data")
        end = await crew.ended(run_id)

    assert end.type == "RunCompleted"
    assert handed == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3]
    assert crew.broker.messages("DLQ") == []


async def test_a_worker_that_is_told_that_another_has_the_task_may_say_so_any_number_of_times() -> None:
    crew = Crew()
    handed: list[int] = []

    async def handle(delivery: Delivery) -> None:
        handed.append(delivery.deliveries)
        if len(handed) <= 6:
            await delivery.nak(0.001)
        else:
            await finish(crew, delivery)

    async with crew.orchestrator(), workers(crew, handle):
        run_id = await crew.submit(type="data")
        end = await crew.ended(run_id)

    assert end.type == "RunCompleted"
    assert handed == [1, 2, 3, 4, 5, 1, 2]


async def test_a_letter_from_before_the_orchestrator_was_there_is_taken_note_of() -> None:
    crew = Crew()
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
    await a_letter(crew, "unanswered", lambda headers: headers)
    assert crew.types(run_id)[-1] == "TaskDispatched"

    async with crew.orchestrator():
        end = await crew.ended(run_id)

    assert (end.type, msgspec.json.decode(end.data)["error"]["code"]) == ("RunFailed", "poison")


@pytest.mark.parametrize(
    "forged",
    [
        lambda headers: {**headers, "Nats-Msg-Id": headers["Task-Id"] + ":1:2"},
        lambda headers: {**headers, "Attempt": "2"},
        lambda headers: {**headers, "Run-Id": str(UUID(int=5))},
        lambda headers: {**headers, "Run-Id": "", "Task-Id": "x"},
    ],
)
async def test_a_letter_about_anything_else_is_only_kept(forged: Callable[[dict[str, str]], dict[str, str]]) -> None:
    crew = Crew()
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        await a_letter(crew, "failed", forged)
        await a_letter(crew, "failed", lambda headers: {**headers, "Nats-Msg-Id": "last"}, kind="code")
        async with workers(crew, lambda delivery: finish(crew, delivery)):
            end = await crew.ended(run_id)

    assert end.type == "RunCompleted"
    assert len(crew.broker.messages("DLQ")) == 2


async def test_redriving_a_task_that_has_ended_says_so_and_does_nothing() -> None:
    crew = Crew()
    async with crew.orchestrator(), workers(crew, lambda _: broken()):
        run_id = await crew.submit(type="data")
        await crew.ended(run_id)
        answer = await crew.ask("letters.redrive", {"sequence": 1})
        foreign = await crew.ask("letters.redrive", {"sequence": 1}, tenant="acme")
        missing = await crew.ask("letters.redrive", {"sequence": 2})

    assert answer["status"] == "ended"
    ended, _, next_step = answer["detail"].rpartition("; ")
    assert ended == f"task {task_of(crew, run_id)} (task) of run {run_id} has ended: failed (poison); the run is failed"
    assert next_step == f"it can be tried in a new run: crewlog fork {run_id} --at EVENT, one before it failed"
    assert foreign["status"] == "unknown"
    assert missing["error"]["code"] == "not_found"
    assert len(crew.broker.messages("DLQ")) == 1
    assert crew.broker.messages("WORK") == []


async def test_redriving_a_task_that_waits_publishes_what_the_log_holds_under_a_fresh_id() -> None:
    crew = Crew()
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        await a_letter(crew, "failed", lambda headers: {**headers, "Nats-Msg-Id": "of another make"}, body=b"forged")
        crew.broker.remove("WORK", 1)
        answer = await crew.ask("letters.redrive", {"sequence": 1})
        [again] = crew.broker.messages("WORK")
        async with workers(crew, lambda delivery: finish(crew, delivery)):
            end = await crew.ended(run_id)

    assert answer["status"] == "published"
    assert crew.broker.messages("DLQ") == []
    assert again.subject == "work.data.normal"
    assert again.headers["Nats-Msg-Id"].startswith(f"{task_of(crew, run_id)}:1:1-")
    assert parse_task(again.data).objective == "Do it"
    assert end.type == "RunCompleted"


async def broken() -> None:
    raise ValueError("cannot digest this")


def task_of(crew: Crew, run_id: RunId) -> str:
    data = next(r.data for r in crew.log.streams[run_stream(run_id)].events if r.type == "TaskDispatched")
    return str(msgspec.json.decode(data)["task_id"])


async def a_letter(crew: Crew, cause: Cause, forged: Callable[[dict[str, str]], dict[str, str]], *, kind: str = "data", body: bytes | None = None) -> None:
    """Write a letter about the one message that waits, as a worker might."""
    [message] = crew.broker.messages("WORK")
    task: AgentTask = parse_task(message.data)
    assert task.type == "data"

    class Forged:
        subject, data, headers, deliveries, sequence = f"work.{kind}.normal", body or message.data, forged(dict(message.headers)), 11, 1

    await dead_letters(crew.bus, "WORK")(Forged(), cause, "it was so")  # type: ignore[arg-type]  # a letter needs what a delivery says only
