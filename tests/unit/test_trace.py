"""The fold of a run's events into spans: what the tree looks like, what spans say, and that it is whole for every history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import recorded_history, write_history

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Recorded
from crewlog.projections.span import Span, SpanKind
from crewlog.projections.span_content import TEXT_CHARS_MAX, with_content
from crewlog.projections.telemetry import trace_of
from crewlog.projections.trace import END_TYPES, RunTrace
from crewlog.schemas.codec import Event, encode, type_name
from crewlog.schemas.ids import ApprovalId, Hash, RunId, Stream, TaskId, run_stream, spend_stream, task_stream
from crewlog.schemas.payload import EMPTY, Payload, content_hash
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed, RunSubmitted, TaskDispatched
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.trace_context import SpanRef, span_id
from crewlog.schemas.usage import WORST_CASE, Price, Usage
from crewlog.schemas.values import Failure, Outcome

RUN = RunId(UUID("00000000-0000-4000-8000-00000000000a"))
TASK = TaskId(UUID("00000000-0000-4000-8000-00000000000b"))
APPROVAL = ApprovalId(UUID(int=5))
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "what nobody should read in a tracing tool"
SECOND = 1_000_000


@dataclass
class Log:
    """Events of one run, a second apart unless the test says otherwise."""

    events: list[Recorded] = field(default_factory=list)
    now_us: int = 0

    def append(self, stream: Stream, *events: Event, actor: str = "orchestrator@o") -> None:
        self.now_us += SECOND
        for event in events:
            version = 1 + sum(r.stream == stream for r in self.events)
            position, id_ = len(self.events) + 1, UUID(int=len(self.events) + 1)
            data = encode(event)
            self.events.append(Recorded(position, stream, version, id_, type_name(event), event.schema_version, data, self.now_us, RUN, actor=actor))

    def run(self, *events: Event) -> None:
        self.append(run_stream(RUN), *events)

    def agent(self, *events: Event, worker: str = "data-1") -> None:
        self.append(task_stream(TASK), *events, actor=f"agent@{worker}")

    def spans(self, replay: UUID | None = None) -> dict[str, Span]:
        spans = trace_of(RUN, self.events, replay=replay)
        assert len({span.span_id for span in spans}) == len(spans)
        return {span.name + "!" * sum(s.name == span.name for s in spans[:n]): span for n, span in enumerate(spans)}


def submitted(caller: str = "") -> RunSubmitted:
    return RunSubmitted(RUN, "acme", "ann", SECRET, msgspec.Raw(b'{"type":"run","priority":"high"}'), "api", caller=caller)


def dispatched(attempt: int = 1) -> TaskDispatched:
    return TaskDispatched(TASK, "count", "data", attempt, 0, 0)


def started(worker: str = "data-1", attempt: int = 1) -> TaskStarted:
    return TaskStarted(worker, attempt, "7", "claude-x", "anthropic", False, EMPTY, EMPTY)


def asks(turn: int = 1, model: str = "claude-x", provider: str = "anthropic") -> ModelCallStarted:
    return ModelCallStarted(f"m{turn}-1", turn, provider, model, Hash("a" * 64), 3, wire="w")


def answers(turn: int = 1, *tools: str, provider: str = "anthropic", latency_ms: int = 250) -> ModelCallFinished:
    said = Payload(len(SECRET), inline=SECRET)
    calls = tuple(ToolCall(f"t{turn}-{n}", tool, said) for n, tool in enumerate(tools, 1))
    usage = Usage(1200, 300, 800, 100, 40)
    price = Price(6015, "genai-prices 1")
    return ModelCallFinished(
        f"m{turn}-1", turn, "tool_use", said, calls, usage, price, provider, "claude-x-001", simulated=False, latency_ms=latency_ms, request_id="req_1"
    )


def begins(call: str, tool: str) -> ToolStarted:
    return ToolStarted(call, tool, "1", "read", "k")


def ends(call: str, tool: str, latency_ms: int = 400, status: str = "ok") -> ToolFinished:
    return ToolFinished(call, tool, status, Payload(len(SECRET), inline=SECRET), latency_ms)  # type: ignore[arg-type]


def completed() -> TaskCompleted:
    return TaskCompleted(Outcome(SECRET), Usage(), 0, 1, 1)


def parents(spans: dict[str, Span]) -> dict[str, str]:
    names = {span.span_id: name for name, span in spans.items()}
    return {name: names[span.parent_id] if span.parent_id else "" for name, span in spans.items()}


def test_a_run_is_one_tree() -> None:
    log = Log()
    log.run(submitted(CALLER), dispatched())
    log.agent(started(), asks())
    log.agent(answers(1, "look"), begins("t1-1", "look"))
    log.agent(ends("t1-1", "look"), completed())
    log.run(RunCompleted(EMPTY))
    spans = log.spans()
    assert parents(spans) == {
        "invoke_workflow run": "",
        "send work.data.high": "invoke_workflow run",
        "process work.data.high": "send work.data.high",
        "invoke_agent data": "process work.data.high",
        "chat claude-x": "invoke_agent data",
        "execute_tool look": "invoke_agent data",
    }
    assert {span.trace_id for span in spans.values()} == {RUN.bytes}
    assert {name: span.kind for name, span in spans.items() if span.kind is not SpanKind.INTERNAL} == {
        "send work.data.high": SpanKind.PRODUCER,
        "process work.data.high": SpanKind.CONSUMER,
        "chat claude-x": SpanKind.CLIENT,
    }
    assert {name: (span.begin_us / SECOND, span.end_us / SECOND) for name, span in spans.items()} == {
        "invoke_workflow run": (1, 5),
        "send work.data.high": (1, 1),
        "process work.data.high": (2, 4),
        "invoke_agent data": (2, 4),
        "chat claude-x": (2.75, 3),
        "execute_tool look": (3, 3.4),
    }
    assert {name: span.actor for name, span in spans.items() if name.startswith(("invoke", "chat"))} == {
        "invoke_workflow run": "orchestrator@o",
        "invoke_agent data": "agent@data-1",
        "chat claude-x": "agent@data-1",
    }
    root = spans["invoke_workflow run"]
    assert root.links == (SpanRef(bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331")),)
    assert root.span_id == span_id(RUN, "workflow")
    assert spans["send work.data.high"].span_id == span_id(TASK, "send/1")
    assert not any(span.error for span in spans.values())


def test_what_spans_say_and_what_they_never_say() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks())
    log.agent(answers(1, "look"), begins("t1-1", "look"))
    log.agent(ends("t1-1", "look", status="error"), completed())
    log.run(RunCompleted(EMPTY))
    spans = log.spans()
    assert spans["chat claude-x"].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": "claude-x",
        "gen_ai.response.model": "claude-x-001",
        "gen_ai.response.id": "req_1",
        "gen_ai.response.finish_reasons": ("tool_use",),
        "gen_ai.usage.input_tokens": 1200,
        "gen_ai.usage.output_tokens": 300,
        "gen_ai.usage.cache_read.input_tokens": 800,
        "gen_ai.usage.cache_creation.input_tokens": 100,
        "gen_ai.usage.cache_write.input_tokens": 100,
        "gen_ai.usage.reasoning.output_tokens": 40,
        "gen_ai.conversation.id": str(RUN),
        "orch.cost.usd": 0.006015,
        "orch.cost.source": "genai-prices 1",
    }
    assert spans["execute_tool look"].attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "look",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "t1-1",
        "gen_ai.agent.name": "data",
        "gen_ai.conversation.id": str(RUN),
        "orch.tool.status": "error",
        "error.type": "tool_error",
    }
    assert spans["invoke_workflow run"].attributes["orch.cost.usd"] == 0.006015
    assert spans["send work.data.high"].attributes["messaging.message.id"] == f"{TASK}:1:1"
    assert SECRET not in repr(spans)
    assert "ann" not in {value for span in spans.values() for value in span.attributes.values()}


def test_a_task_that_waits_for_a_person_goes_on_in_the_same_trace_linked_to_what_it_did_before() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks())
    log.agent(answers(1, "mail", "look"), ApprovalRequested(APPROVAL, "t1-1", "mail", EMPTY, Hash("b" * 64), SECRET, 9), begins("t1-2", "look"))
    log.agent(ends("t1-2", "look"))
    log.agent(ApprovalDecided(APPROVAL, "t1-1", Hash("b" * 64), "approved", "ann"))
    log.run(dispatched())
    log.agent(started("data-2"), begins("t1-1", "mail"), worker="data-2")
    log.agent(ends("t1-1", "mail"), completed(), worker="data-2")
    log.run(RunCompleted(EMPTY))
    spans = log.spans()
    first, second = spans["invoke_agent data"], spans["invoke_agent data!"]
    assert first.attributes["orch.task.ended"] == "suspended"
    assert (first.begin_us, first.end_us) == (2 * SECOND, 4 * SECOND)
    assert second.links == (SpanRef(RUN.bytes, first.span_id),)
    assert (first.actor, second.actor) == ("agent@data-1", "agent@data-2")
    assert parents(spans)["process work.data.high!"] == "send work.data.high!"
    assert parents(spans)["execute_tool mail"] == "invoke_agent data!"
    assert not any(span.error for span in spans.values())


def test_what_a_worker_did_before_it_died_is_in_the_trace() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks())
    log.agent(answers(1, "look"), begins("t1-1", "look"))
    log.agent(started("data-2"), begins("t1-1", "look"), worker="data-2")
    log.agent(ends("t1-1", "look"), asks(2), worker="data-2")
    log.agent(started("data-3"), worker="data-3")
    lost = ModelCallFailed("m2-1", 2, "anthropic", "claude-x", Failure("interrupted", SECRET), 0, Price(9000, WORST_CASE))
    log.agent(lost, completed(), worker="data-3")
    log.run(RunCompleted(EMPTY))
    spans = log.spans()
    ended = [spans[f"invoke_agent data{again}"] for again in ("", "!", "!!")]
    assert [span.attributes["orch.task.ended"] for span in ended] == ["interrupted", "interrupted", "completed"]
    assert [span.error for span in ended] == ["interrupted", "interrupted", ""]
    assert [link.span_id for span in ended for link in span.links] == [span.span_id for span in ended[:2]]
    tools = (spans["execute_tool look"], spans["execute_tool look!"])
    assert [(tool.error, tool.parent_id) for tool in tools] == [("interrupted", ended[0].span_id), ("", ended[1].span_id)]
    call = spans["chat claude-x!"]
    assert (call.error, call.parent_id, call.begin_us, call.end_us) == ("interrupted", ended[1].span_id, 5 * SECOND, 5 * SECOND)
    assert "gen_ai.usage.input_tokens" not in call.attributes
    assert spans["invoke_workflow run"].attributes["orch.cost.usd"] == (6015 + 9000) / 1e6


def test_every_attempt_at_a_model_is_a_span_and_a_failed_one_has_no_usage() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks())
    failed = ModelCallFailed("m1-1", 1, "anthropic", "claude-x", Failure("model_rate_limit", SECRET, True), 30, status=429, request_id="req_0")
    log.agent(failed, ModelCallStarted("m1-2", 1, "google", "gemini-x", Hash("a" * 64), 3, wire="g"))
    log.agent(msgspec.structs.replace(answers(provider="google"), call_id="m1-2"), AttemptFailed(1, Failure("timeout", SECRET)))
    log.run(RunFailed(Failure("task_failed", SECRET), EMPTY))
    spans = log.spans()
    first, second = spans["chat claude-x"], spans["generate_content gemini-x"]
    assert (first.error, first.attributes["error.type"], first.attributes["http.response.status_code"]) == ("model_rate_limit", "model_rate_limit", 429)
    assert not any("usage" in name for name in first.attributes)
    assert second.attributes["gen_ai.provider.name"] == "gcp.gemini"
    assert {spans[name].error for name in ("invoke_agent data", "process work.data.high")} == {"timeout"}
    assert spans["invoke_workflow run"].error == "task_failed"
    assert SECRET not in repr(spans)


def test_a_call_that_ran_nothing_is_a_span_without_a_duration() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks(), answers(1, "fly"))
    log.agent(ends("t1-1", "fly", 0, "refused"), completed())
    refused = log.spans()["execute_tool fly"]
    assert (refused.error, refused.begin_us, refused.end_us) == ("tool_refused", 3 * SECOND, 3 * SECOND)


def test_a_cancelled_run_closes_what_was_open_and_shows_what_was_paid_for_later() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks())
    log.run(RunCancelled(SECRET, "ann"))
    log.agent(TaskCancelled("stop", "ann"))
    log.append(spend_stream(TASK), CallSettled(TASK, RUN, "m1-1", "anthropic", "claude-x", Usage(10, 5), Price(7, "config")))
    spans = log.spans()
    assert spans["invoke_agent data"].attributes["orch.task.ended"] == "cancelled"
    assert spans["invoke_workflow run"].attributes["orch.run.status"] == "cancelled"
    assert parents(spans)["chat claude-x"] == "invoke_workflow run"
    assert spans["chat claude-x"].attributes["gen_ai.usage.input_tokens"] == 10


async def test_what_was_said_is_in_spans_that_are_asked_to_have_it() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(msgspec.structs.replace(started(), opening=Payload(4, inline="go!!")), asks())
    large = b"y" * 20_000
    log.agent(answers(1, "look"), begins("t1-1", "look"))
    log.agent(msgspec.structs.replace(ends("t1-1", "look"), result=Payload(len(large), ref=content_hash(large))), asks(2))
    log.agent(answers(2), completed())
    store = MemoryStore()
    await store.put_blobs([large])
    spans = {s.name + "!" * (s.begin_us > 4 * SECOND): s for s in await with_content(trace_of(RUN, log.events, with_content=True), store)}
    shown = "y" * (TEXT_CHARS_MAX - 1) + "…"
    assert json.loads(str(spans["chat claude-x"].attributes["gen_ai.input.messages"])) == [{"role": "user", "parts": [{"type": "text", "content": "go!!"}]}]
    assert json.loads(str(spans["chat claude-x"].attributes["gen_ai.output.messages"])) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": SECRET}, {"type": "tool_call", "id": "t1-1", "name": "look", "arguments": SECRET}],
        }
    ]
    assert json.loads(str(spans["chat claude-x!"].attributes["gen_ai.input.messages"])) == [
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t1-1", "response": shown}]}
    ]
    tool = spans["execute_tool look"].attributes
    assert (tool["gen_ai.tool.call.arguments"], tool["gen_ai.tool.call.result"]) == (SECRET, shown)


def test_a_replay_is_a_trace_of_its_own_linked_to_the_original() -> None:
    log = Log()
    log.run(submitted(), dispatched())
    log.agent(started(), asks(), answers(), completed())
    log.run(RunCompleted(EMPTY))
    replay = UUID(int=77)
    original, replayed = log.spans(), log.spans(replay)
    assert parents(original) == parents(replayed)
    assert {span.trace_id for span in replayed.values()} == {replay.bytes}
    assert not {span.span_id for span in original.values()} & {span.span_id for span in replayed.values()}
    root = replayed["invoke_workflow run"]
    assert root.links == (SpanRef(RUN.bytes, original["invoke_workflow run"].span_id),)
    assert root.attributes["orch.replay_of"] == str(RUN)


@pytest.mark.hand_written("histories of every shape")
@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 300))
async def test_every_history_is_one_tree_per_run(seed: int, runs: int, moves: int) -> None:
    _, events = await recorded_history(write_history(Random(seed), runs=runs, moves=moves))
    for run_id in {r.run_id for r in events if r.run_id is not None}:
        own = [r for r in events if r.run_id == run_id]
        spans = trace_of(run_id, own)
        whole = any(r.type in END_TYPES for r in own)
        assert_tree(run_id, spans, is_whole=whole)
        assert spans == in_two_processes(run_id, own, Random(seed).randrange(len(own)))


def assert_tree(run_id: UUID, spans: Sequence[Span], *, is_whole: bool) -> None:
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans), "two spans have one id"
    roots = [span for span in spans if not span.parent_id]
    assert [root.span_id for root in roots] == ([span_id(run_id, "workflow")] if is_whole else [])
    for span in spans:
        assert span.end_us >= span.begin_us
        assert span.attributes["gen_ai.conversation.id"] == str(run_id)
        if is_whole and span.parent_id:
            assert span.parent_id in by_id, f"{span.name} has no parent"
        for link in span.links:
            assert link.trace_id == run_id.bytes
            assert link.span_id in by_id


def in_two_processes(run_id: UUID, events: Sequence[Recorded], at: int) -> list[Span]:
    """Fold as a process does that dies, and one that goes on from the log."""
    first, second = RunTrace(run_id), RunTrace(run_id)
    spans = [span for recorded in events[:at] for span in first.fold(recorded, recorded.event())]
    for recorded in events[:at]:
        second.fold(recorded, recorded.event())
    return spans + [span for recorded in events[at:] for span in second.fold(recorded, recorded.event())]
