"""Request-reply: every endpoint, every refusal as JSON, kinds that come and go."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from support.crew import Crew, diligent
from support.decider import a_plan

from crewlog.events.bus import Message
from crewlog.schemas.ids import ApprovalId, Hash, Stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.subjects import control_worker, telemetry, version_lane
from crewlog.schemas.system_events import AgentRegistered
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ApprovalRequested, TaskCompleted, TaskEvent
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

APPROVAL = ApprovalId(UUID(int=1))


def silent(*_: object) -> TaskEvent | None:
    return None


def registration(kind: str = "weather", worker: str = "w1", unavailable: str = "") -> bytes:
    return msgspec.json.encode(AgentRegistered(kind, worker, f"Knows the {kind}.", "1", 4, "offline/rules", True, (), unavailable))


async def test_submitting_twice_is_answered_as_a_duplicate() -> None:
    crew = Crew()
    body = {"task_id": str(UUID(int=9)), "type": "data", "objective": "Count"}
    async with crew.orchestrator():
        first, second = await crew.ask("tasks.submit", body), await crew.ask("tasks.submit", body)

    assert first == {"ok": True, "run_id": str(UUID(int=9)), "task_id": str(UUID(int=9)), "status": "accepted"}
    assert second == {**first, "status": "duplicate"}


async def test_a_run_whose_text_fits_into_no_message_is_told_of_all_the_same() -> None:
    """Fourteen steps side by side; the answer without their synthesis is all they say."""

    def verbose(task: AgentTask, _: int) -> TaskEvent:
        return TaskCompleted(Outcome(f"{task.key} " * 30_000), Usage(10, 5), 7, 1, 0)

    crew = Crew(verbose)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(**{f"a{n}": "data" for n in range(14)}))
        await crew.ended(run_id)
        run = (await crew.ask("runs.get", {"run_id": run_id}))["run"]

    assert (run["status"], len(run["text"]), run["text"][:9]) == ("completed", 100_000, "## a0\n\na0")
    assert run["text_bytes"] > 1024 * 1024


@pytest.mark.parametrize(
    ("what", "body", "code", "text"),
    [
        ("tasks.submit", b"{", "contract", "not valid JSON"),
        ("tasks.submit", {"type": "data", "objective": "x", "tenant": "acme"}, "contract", "wrong subject"),
        ("runs.get", {"run_id": "nonsense"}, "contract", "$.run_id"),
        ("runs.get", {"run_id": UUID(int=1)}, "not_found", "matches nothing"),
        ("runs.get", {"run": UUID(int=1)}, "contract", "RunRequest"),
        ("runs.cancel", {"run_id": UUID(int=1)}, "not_found", "matches nothing"),
        ("approvals.decide", {"run_id": UUID(int=1), "approval_id": UUID(int=1), "decision": "maybe", "actor": "eve"}, "contract", "$.decision"),
        ("approvals.decide", {"run_id": UUID(int=1), "approval_id": UUID(int=1), "decision": "denied", "actor": " "}, "contract", "who decides"),
    ],
)
async def test_every_refusal_is_an_answer(what: str, body: Any, code: str, text: str) -> None:
    crew = Crew()
    async with crew.orchestrator():
        answer = await crew.ask(what, body)

    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert text in answer["error"]["message"]


async def test_problems_name_their_place() -> None:
    crew = Crew()
    async with crew.orchestrator():
        answer = await crew.ask("tasks.submit", {"type": "run", "objective": "x", "plan": a_plan(a="reserch")})

    assert answer["error"]["problems"] == [
        {
            "pointer": "/plan/steps/0/type",
            "message": "unknown kind 'reserch'; known kinds: code, communicate, data, planner, research; name one of them, perhaps 'research', "
            "or start an agent of kind 'reserch' with `crewlog agent MODULE:ATTR`",
        }
    ]


async def test_a_run_can_be_read_while_it_works_and_when_it_is_done() -> None:
    crew = Crew(lambda task, _: None if task.key == "b" else long_answer(task))
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="code a", c="code b"))
        await crew.until(lambda: "TaskReviewed" in crew.types(run_id))
        run = (await crew.ask("runs.get", {"run_id": run_id}))["run"]
        assert [(s["key"], s["status"], (s["waiting"] or {}).get("reason")) for s in run["steps"]] == [
            ("a", "accepted", None),
            ("b", "dispatched", "worker"),
            ("c", "planned", "dependency"),
        ]
        await crew.ask("runs.cancel", {"run_id": run_id, "reason": "enough"})
        run = (await crew.ask("runs.get", {"run_id": run_id}))["run"]
        assert (run["status"], run["end"]) == ("cancelled", {"reason": "enough", "actor": "anonymous"})
        done = await crew.submit(type="data")
        await crew.ended(done)
        run = (await crew.ask("runs.get", {"run_id": done}))["run"]

    assert (run["status"], len(run["text"]), run["output"], run["end"]["flags"]) == ("completed", 12_000, {"n": 1}, [])


def long_answer(_: AgentTask) -> TaskEvent:
    return TaskCompleted(Outcome("word " * 2_400, output={"n": 1}), Usage(), 0, 1, 0)


async def test_another_tenant_sees_nothing() -> None:
    crew = Crew(silent)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data")
        for what, more in (("runs.get", {}), ("runs.cancel", {}), ("approvals.decide", {"approval_id": APPROVAL, "decision": "approved", "actor": "eve"})):
            assert (await crew.ask(what, {"run_id": run_id, **more}, tenant="acme"))["error"]["code"] == "not_found"


async def test_cancelling_is_idempotent_but_comes_too_late_for_a_run_that_ended() -> None:
    crew = Crew(silent)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="code"))
        for _ in range(2):
            answer = await crew.ask("runs.cancel", {"run_id": run_id, "reason": "enough", "actor": "eve"})
            assert answer == {"ok": True, "run_id": str(run_id), "status": "cancelled"}
        assert [r.type for r in crew.log.events].count("TaskCancelled") == 2
        crew.behaviour = diligent
        done = await crew.submit(type="data")
        await crew.ended(done)
        assert (await crew.ask("runs.cancel", {"run_id": done}))["error"]["code"] == "conflict"


async def test_the_first_answer_to_an_approval_wins() -> None:
    crew = Crew(lambda task, attempt: asks(crew) if len(crew.deliveries) == 1 else diligent(task, attempt))
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="communicate")
        await crew.until(lambda: "TaskSuspended" in crew.types(run_id))
        body = {"run_id": run_id, "approval_id": APPROVAL, "decision": "approved", "actor": "eve", "note": "go on"}
        yes = {"ok": True, "approval_id": str(APPROVAL), "decision": "approved"}
        assert await crew.ask("approvals.decide", body) == yes
        assert await crew.ask("approvals.decide", body) == yes
        refusal = await crew.ask("approvals.decide", {**body, "decision": "denied", "actor": "bob"})
        await crew.ended(run_id)

    assert refusal["error"]["code"] == "conflict"
    assert "already approved by eve" in refusal["error"]["message"]
    assert [headers["Nats-Msg-Id"].rsplit(":", 1)[1] for _, headers in crew.deliveries] == ["1", "2"]


def asks(crew: Crew) -> TaskEvent:
    expires_us = crew.clock.now_us() + 60_000_000
    return ApprovalRequested(APPROVAL, "t1-1", "send_email", EMPTY, Hash("d" * 64), "sends mail", expires_us)


async def test_a_task_is_handed_on_while_it_waits_and_to_a_version_that_answers() -> None:
    crew = Crew()
    lane = version_lane("2")

    async def answer(message: Message) -> None:
        await crew.bus.publish(message.reply, b'{"holds":false}')

    async with crew.orchestrator() as service:
        run_id = await crew.submit(type="data")
        body = {"run_id": run_id, "task_id": run_id, "version": "2"}

        async def handed_on(**other: object) -> bool:
            said: bool = (await crew.ask("agents.hand_on.data", {**body, **other}, tenant="system"))["handed_on"]
            return said

        assert not await handed_on(), "nobody is there"
        beat = {"kind": "data", "worker": "w2", "slots": 1, "lanes": [lane]}
        await crew.bus.publish(telemetry("data", "w2"), json.dumps(beat).encode())
        while not service.dispatcher.workers(f"data.{lane}"):  # noqa: ASYNC110  (one turn of the loop)
            await asyncio.sleep(0)
        assert not await handed_on(), "it was heard, and does not answer any more"
        await crew.bus.subscribe(control_worker("w2"), answer)
        assert not await handed_on(version="3")
        assert not await handed_on(run_id=uuid4())
        assert not await handed_on(task_id=uuid4())
        assert not (await crew.ask("agents.hand_on.code", body, tenant="system"))["handed_on"]
        assert not (await crew.ask("agents.hand_on.data", {**body, "version": "2" * 101}, tenant="system"))["ok"]
        assert await handed_on()
        assert (await crew.bus.queued("WORK")).subjects == {"work.data.normal": 1, f"work.data.{lane}": 1}


async def test_a_kind_of_ones_own_is_known_to_all_orchestrators_and_after_a_restart() -> None:
    crew = Crew()
    task = {"type": "weather", "objective": "Will it rain?"}
    async with crew.orchestrator() as one, crew.orchestrator() as two:
        assert not (await crew.ask("tasks.submit", task))["ok"]
        registered = await crew.ask("agents.register.weather", registration(), tenant="system")
        assert registered == {"ok": True, "kind": "weather", "lane": version_lane("1")}
        await crew.until(lambda: "weather" in one.kinds.offers and "weather" in two.kinds.offers)
    async with crew.orchestrator(), crew.agents(["weather"]):
        answer = await crew.ask("tasks.submit", task)
        assert answer["ok"], answer

    assert [r.type for r in crew.log.streams[Stream("agent/weather")].events] == ["AgentRegistered"]


async def test_the_directory_of_kinds_grows_with_kinds_not_with_workers() -> None:
    crew = Crew()
    async with crew.orchestrator():
        for worker in ("w1", "w2", "w3"):
            await crew.ask("agents.register.weather", registration(worker=worker), tenant="system")
        await crew.ask("agents.stop.weather", {"kind": "weather", "worker": "w1"}, tenant="system")

    assert len(crew.log.streams[Stream("agent/@kinds")].events) == 1
    assert [r.type for r in crew.log.streams[Stream("agent/weather")].events] == [*["AgentRegistered"] * 3, "AgentStopped"]


async def test_a_kind_without_a_worker_that_can_work_is_refused_with_the_hint() -> None:
    crew = Crew()
    task = {"type": "weather", "objective": "Will it rain?"}
    async with crew.orchestrator():
        await crew.ask("agents.register.weather", registration(unavailable="pip install weather"), tenant="system")
        refusal = await crew.ask("tasks.submit", task)
        await crew.ask("agents.register.weather", registration(worker="w2"), tenant="system")
        await crew.ask("agents.register.weather", registration(worker="w3", unavailable="pip install weather"), tenant="system")
        answer = await crew.ask("tasks.submit", task)

    assert refusal["error"]["problems"] == [{"pointer": "/type", "message": "kind 'weather' is unavailable: pip install weather"}]
    assert answer["ok"]


async def test_a_rollback_is_told_just_what_it_lacks() -> None:
    crew = Crew()
    async with crew.orchestrator():
        asked = await crew.ask("runs.rollback", {"run_id": UUID(int=1), "reason": " ", "actor": "eve"})
    assert [problem["pointer"] for problem in asked["error"]["problems"]] == ["/reason"]


@pytest.mark.parametrize("kind", ["we.ather", "run", ""])
async def test_kinds_that_cannot_be_subjects_are_refused(kind: str) -> None:
    crew = Crew()
    async with crew.orchestrator():
        assert (await crew.ask("agents.register.weather", registration(kind), tenant="system"))["error"]["code"] == "contract"


async def test_a_worker_speaks_for_its_own_kind_only() -> None:
    crew = Crew()
    async with crew.orchestrator() as one:
        await crew.ask("agents.register.weather", registration(), tenant="system")
        forged = registration("weather", "w2", "pip install nothing")
        answers = [
            await crew.ask("agents.register.code", forged, tenant="system"),
            await crew.ask("agents.stop.code", {"kind": "weather", "worker": "w1"}, tenant="system"),
        ]
        assert [(answer["error"]["code"], answer["error"]["problems"][0]["pointer"]) for answer in answers] == [("contract", "/kind")] * 2
        assert not one.kinds.offers["weather"].unavailable
    assert [r.type for r in crew.log.streams[Stream("agent/weather")].events] == ["AgentRegistered"]


@pytest.mark.parametrize("worker", ["", "w.1", "w 1", "w*", "w" * 129])
async def test_a_worker_that_nobody_could_ask_is_not_registered(worker: str) -> None:
    crew = Crew()
    async with crew.orchestrator():
        answer = await crew.ask("agents.register.weather", registration(worker=worker), tenant="system")
    assert answer["error"]["problems"][0]["pointer"] == "/worker"


async def test_only_who_is_registered_and_answers_no_more_has_left() -> None:
    crew = Crew()

    async def left(kind: str, worker: str) -> tuple[str, str]:
        error = (await crew.ask(f"agents.stop.{kind}", {"kind": kind, "worker": worker}, tenant="system")).get("error", {"code": "", "message": ""})
        return error["code"], error["message"]

    async def answer(message: Message) -> None:
        await crew.bus.publish(message.reply, b'{"holds":false}')

    async with crew.orchestrator() as one:
        await crew.ask("agents.register.weather", registration(), tenant="system")
        assert await left("weather", "w2") == ("not_found", "weather worker 'w2' matches nothing")
        assert await left("nobody", "w1") == ("not_found", "agent kind 'nobody' matches nothing")
        there = await crew.bus.subscribe(control_worker("w1"), answer)
        assert await left("weather", "w1") == ("contract", "weather worker w1 still answers, so it has not left; to have it leave: crewlog drain w1")
        await there.stop()
        assert await left("weather", "w1") == ("", "")
        assert (await left("weather", "w1"))[0] == "not_found", "it has left already"
        assert not one.kinds.offers["weather"].unavailable, "tasks wait for the next one"
    assert [r.type for r in crew.log.streams[Stream("agent/weather")].events] == ["AgentRegistered", "AgentStopped"]


@pytest.mark.parametrize("ends", ["leaves", "dies"])
async def test_a_kind_can_work_no_more_once_all_that_are_there_lack_something(ends: str) -> None:
    crew = Crew()
    async with crew.orchestrator(worker_grace_s=100.0) as one, crew.orchestrator(worker_grace_s=100.0) as two:
        await crew.ask("agents.register.weather", registration(worker="able"), tenant="system")
        await crew.ask("agents.register.weather", registration(worker="w2", unavailable="pip install weather"), tenant="system")

        async def answer(message: Message) -> None:
            await crew.bus.publish(message.reply, b'{"holds":false}')

        await crew.bus.subscribe(control_worker("w2"), answer)
        assert [service.kinds.offers["weather"].unavailable for service in (one, two)] == ["", ""]
        if ends == "leaves":
            await crew.ask("agents.stop.weather", {"kind": "weather", "worker": "able"}, tenant="system")
        for _ in range(3):
            crew.clock.ahead_s += 60
            await one.sweep.sweep()
            await two.sweep.sweep()
        assert [service.kinds.offers["weather"].unavailable for service in (one, two)] == ["pip install weather"] * 2
        assert [[*service.kinds._lacking["weather"]] for service in (one, two)] == [["w2"]] * 2
        await crew.ask("agents.register.weather", registration(worker="w3"), tenant="system")
        assert [service.kinds.offers["weather"].unavailable for service in (one, two)] == ["", ""]


async def test_a_request_that_is_nested_deeper_than_python_follows_is_a_bad_one() -> None:
    crew = Crew()
    async with crew.orchestrator():
        deep = b'{"run_id": "", "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"
        assert (await crew.ask("runs.get", deep))["error"]["code"] == "contract"
