"""The public queue: good tasks become runs, bad ones are kept with the reason, nothing is lost when the log is away."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.crew import Crew, Moody
from support.decider import a_plan

from crewlog.events.bus import Message
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_bus import MemoryBroker
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Appended, AppendRequest
from crewlog.orchestrator.intake import is_reply_subject
from crewlog.orchestrator.overtaking import Overtaker
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RunSubmitted

ID = "00000000-0000-4000-8000-00000000000a"
TASK = {"task_id": ID, "type": "data", "objective": "Count"}


class Sender:
    """Somebody who publishes to the queue and listens to the verdict."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.verdicts: list[dict[str, Any]] = []

    async def send(self, body: Any, *, subject: str = "tasks.default.data", reply_to: str = "replies.default.me") -> None:
        async def heard(message: Message) -> None:
            self.verdicts.append(json.loads(message.data))
            self.crew._on_commit()

        await self.crew.bus.subscribe(reply_to, heard)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.crew.bus.publish(subject, data, headers={"Reply-To": reply_to})

    async def verdict(self) -> dict[str, Any]:
        await self.crew.until(lambda: bool(self.verdicts))
        await self.crew.until(lambda: not self.crew.broker.messages("TASKS"))
        return self.verdicts[0]


def runs(crew: Crew) -> list[RunId]:
    return [stream.run_id for name, stream in crew.log.streams.items() if name.startswith("run/") and stream.run_id is not None]


@pytest.mark.parametrize("body", [TASK, {"objective": "Count"}, {**TASK, "tenant": "default"}])
async def test_a_good_task_becomes_a_run(body: dict[str, Any]) -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        sender = Sender(crew)
        await sender.send(body)
        verdict = await sender.verdict()
        (run_id,) = runs(crew)
        assert verdict == {"ok": True, "run_id": str(run_id), "task_id": str(run_id), "status": "accepted"}
        await crew.ended(run_id)

    submitted = crew.events(run_id)[0].event()
    assert isinstance(submitted, RunSubmitted)
    assert (submitted.tenant, submitted.source) == ("default", "subject")


async def test_the_same_task_again_is_the_same_task() -> None:
    crew = Crew()
    async with crew.orchestrator():
        for expected in ("accepted", "duplicate"):
            sender = Sender(crew)
            await sender.send(TASK)
            assert (await sender.verdict())["status"] == expected


LARGE = {"key": "k", "type": "t", "objective": "o", "outcome": {"summary": "y" * 120_000}}

BAD: list[tuple[str, Any, str, str]] = [
    ("tasks.default.data", b'{"objective": ', "contract", "not valid JSON"),
    ("tasks.default.data", b"\xff\xfe", "contract", "not valid JSON"),
    ("tasks.default.data", b"[1, 2]", "contract", "must be a JSON object"),
    ("tasks.default.data", {"objective": "x", "tenant": "acme"}, "contract", "'acme' does not fit the subject, which says 'default'"),
    ("tasks.default.data", {"objective": "x", "type": "code"}, "contract", "'code' does not fit the subject, which says 'data'"),
    ("tasks.default.data", {"objective": "a\x00b"}, "contract", "NUL"),
    ("tasks.default.data", b'{"objective": "a\\ud800b"}', "contract", "half of a surrogate pair"),
    ("tasks.default.data", {"objective": "x", "colour": "red"}, "contract", "/colour: there is no such field; known fields: "),
    ("tasks.default.data", {"task_id": ID}, "contract", "/objective: Field required"),
    ("tasks.default.reserch", {"objective": "x"}, "contract", "unknown kind 'reserch'; known kinds: code, communicate, data, planner, research"),
    ("tasks.default.run", {"objective": "x", "plan": a_plan(a="data b", b="data a")}, "contract", "the plan has a cycle through a -> b -> a"),
    ("tasks.default.run", {"objective": "x", "plan": a_plan(a="data b")}, "contract", "depends on unknown b"),
    ("tasks.default.data.extra", {"objective": "x"}, "contract", "is not tasks.<tenant>.<type>"),
    (
        "tasks.default.data",
        {"objective": "x", "context": [{"key": "k", "type": "t", "objective": "o", "outcome": {"summary": "y" * 120_000}}]},
        "contract",
        "bytes",
    ),
]


@pytest.mark.parametrize(("subject", "body", "code", "reason"), BAD, ids=[case[3][:30] for case in BAD])
async def test_a_bad_task_is_kept_with_the_reason(subject: str, body: Any, code: str, reason: str) -> None:
    crew = Crew()
    async with crew.orchestrator():
        sender = Sender(crew)
        await sender.send(body, subject=subject)
        verdict = await sender.verdict()

    assert (verdict["ok"], verdict["error"]["code"]) == (False, code)
    (kept,) = crew.rejected()
    assert kept.data == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert kept.subject == ".".join(["rejected", *subject.split(".")[1:3]])
    assert reason in kept.headers["X-Reject-Reason"]
    assert (kept.headers["X-Reject-Code"], kept.headers["X-Orig-Subject"], kept.headers["X-Orig-Stream-Seq"]) == (code, subject, "1")
    assert not runs(crew)


@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ("replies.default.me", True),
        ("_INBOX.abc.1", True),
        ("_INBOX_operator.abc", True),
        ("replies.acme.me", False),
        ("work.code.normal", False),
        ("replies.default.*", False),
        ("replies.default.>", False),
        ("replies.default.a b", False),
        ("replies.default.", False),
    ],
)
def test_verdicts_only_go_where_the_sender_may_listen(subject: str, allowed: bool) -> None:
    assert is_reply_subject(subject, "default") is allowed


async def test_nothing_is_lost_while_the_log_is_away() -> None:
    crew = Crew()
    store = Moody(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store):
        store.failing = [Unavailable("the log is away")]
        sender = Sender(crew)
        await sender.send(TASK)
        assert (await sender.verdict())["status"] == "accepted"


async def test_a_task_without_id_whose_verdict_was_lost_is_not_done_twice() -> None:
    crew = Crew()
    store = Moody(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store):
        store.failing = ["answer lost"]
        sender = Sender(crew)
        await sender.send({"objective": "Count"})
        assert (await sender.verdict())["status"] == "duplicate"

    assert len(runs(crew)) == 1


async def test_a_queue_that_counts_from_one_again_loses_nothing() -> None:
    first = Crew()
    async with first.orchestrator():
        sender = Sender(first)
        await sender.send({"objective": "Count"})
        await sender.verdict()
    second = Crew(log=first.log, broker=MemoryBroker())
    async with second.orchestrator():
        sender = Sender(second)
        await sender.send({"objective": "Count"})
        assert (await sender.verdict())["status"] == "accepted"

    assert len(runs(second)) == 2


async def publish(crew: Crew, tenant: str, count: int) -> None:
    for n in range(count):
        await crew.bus.publish(f"tasks.{tenant}.data", json.dumps({"objective": f"Count {n}"}).encode())


def tenants(crew: Crew) -> list[str]:
    """Return whose the runs are, in the order in which they were recorded."""
    submitted = [event for recorded in crew.log.events if isinstance(event := recorded.event(), RunSubmitted)]
    return [event.tenant for event in submitted]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (a queue tells nobody that it is empty)
            await asyncio.sleep(0.005)


async def all_taken(crew: Crew) -> None:
    await until(lambda: not crew.broker.messages("TASKS"))


async def test_one_task_is_taken_in_before_the_hundreds_that_another_tenant_published_first() -> None:
    crew = Crew()
    await publish(crew, "noisy", 400)
    await publish(crew, "quiet", 1)
    await crew.bus.publish("tasks.wrong.data", b"{}")
    async with crew.orchestrator(), crew.orchestrator():
        await until(crew.rejected)
        assert tenants(crew).count("noisy") < 100, "a bad task hears of it early, too"
        await all_taken(crew)
    assert Counter(tenants(crew)) == {"noisy": 400, "quiet": 1}
    assert tenants(crew).index("quiet") < 100


async def test_tenants_with_hundreds_of_tasks_are_taken_in_side_by_side() -> None:
    class AsFastAsPostgres(MemoryStore):
        async def append(self, request: AppendRequest) -> Appended:
            await asyncio.sleep(0.008)  # a log in memory alone takes in hundreds between two looks of who is behind
            return await super().append(request)

    crew = Crew()
    for tenant in ("first", "second", "third"):
        await publish(crew, tenant, 200)
    async with crew.orchestrator(store=AsFastAsPostgres(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)):
        await all_taken(crew)
    order = tenants(crew)
    assert Counter(order) == {"first": 200, "second": 200, "third": 200}
    assert min(Counter(order[:300]).values()) >= 75


async def test_a_task_that_overtakes_and_gets_no_verdict_comes_in_its_turn() -> None:
    class AwayForTheQuiet(MemoryStore):
        failed = 0

        async def append(self, request: AppendRequest) -> Appended:
            (first, *_), *_ = (write.events for write in request.writes)
            if isinstance(first, RunSubmitted) and first.tenant == "quiet" and not self.failed:
                self.failed += 1
                raise Unavailable("the log is away")
            return await super().append(request)

    crew = Crew()
    store = AwayForTheQuiet(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    await publish(crew, "noisy", 100)
    await publish(crew, "quiet", 1)
    async with crew.orchestrator(store=store):
        await all_taken(crew)
    assert store.failed == 1
    assert Counter(tenants(crew)) == {"noisy": 100, "quiet": 1}


async def test_a_message_that_has_the_number_of_one_that_overtook_stays() -> None:
    first, second = Crew(), Crew()
    await publish(first, "quiet", 1)
    kept = await first.bus.first_kept("TASKS", 1)
    assert kept is not None
    await publish(second, "stranger", 1)  # NATS lost its store, and counts from 1 again
    stranger = await second.bus.first_kept("TASKS", 1)
    assert stranger is not None
    assert stranger.sequence == kept.sequence
    await Overtaker(second.bus, kept).ack()
    assert second.broker.messages("TASKS")
    await Overtaker(first.bus, kept).ack()
    assert not first.broker.messages("TASKS")
