"""A hundred tool calls and two hundred thousand tokens: what is stored grows with what was said, and every request can be rebuilt."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from support.scripted import Line, Recorder, Say, ScriptedModel, calls
from support.worker_bench import Bench, payloads, worker_bench

from crewlog.agents.conversation import build_request
from crewlog.agents.rederive import replay_task
from crewlog.agents.setup import Setup
from crewlog.agents.spec import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.task_state import TaskState, evolve, initial_state
from crewlog.agents.tokens import estimate_request
from crewlog.schemas.blocks import ModelReply, ModelRequest, ToolResult, ToolUse
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ContextCompacted, ModelCallFinished, ModelCallStarted, TaskCompleted, TaskEvent, TaskStarted
from crewlog.schemas.usage import Usage

CALLS = 100
WORDS_PER_RESULT = 1_250
"""About 2000 tokens and 8 KB."""
OVERHEAD_MAX = 1.3


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


def results(calls: int) -> list[str]:
    """Different texts, reproducible, as documents would be."""
    draw = random.Random(7)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(2_000)]
    return [" ".join(draw.choices(vocabulary, k=WORDS_PER_RESULT)) for _ in range(calls)]


def counted(request: ModelRequest, uses: tuple[ToolUse, ...]) -> ModelReply:
    """A reply whose provider counts three quarters of what was estimated."""
    return ModelReply(uses, "tool_use", Usage(round(estimate_request(request, provider="offline") * 0.75), 40), "script-1")


def script(calls_made: int) -> list[Line]:
    def line(n: int) -> Line:
        return lambda request: counted(request, (ToolUse(f"x{n}", "read", f'{{"text":"{n}"}}'),))

    return [*map(line, range(calls_made)), calls(("submit", '{"text":"done"}'))]


def reader(texts: list[str]) -> AgentSpec:
    """An agent that reads one long text after the other."""

    async def read(context: ToolContext, args: Say) -> ToolOutput:
        return ToolOutput(texts[int(args.text)])

    tool = ToolSpec("read", "Read a text.", Say, read, effect="read", trust="trusted")
    return AgentSpec("data", "reads", "Read all of it.", (tool, Recorder().tool("submit", ends_task=True)))


async def carried_out(bench: Bench, calls: int, *, window: int) -> tuple[AgentTask, list[ModelRequest], list[TaskEvent]]:
    model = await bench.worker(reader(results(calls)), *script(calls), provider="test", context_window=window)
    task = await bench.open(limits={"turns_max": 1000, "tool_calls_max": 1000})
    await bench.dispatch(task)
    return task, model.requests, await bench.rest(task)


async def stored(bench: Bench, task: AgentTask) -> int:
    return sum(len(r.data) for r in await bench.recorded(task)) + sum(map(len, bench.store.log.blobs.values()))


def distinct(bench: Bench, events: list[TaskEvent]) -> int:
    """Bytes of all texts of the task, each counted once."""
    found = {p.ref or p.inline: p.size for event in events for p in payloads(event)}
    return sum(found.values())


def rebuilt(bench: Bench, events: list[TaskEvent]) -> list[bytes]:
    """Build every request anew, from the log alone."""

    state: TaskState = initial_state()
    setup: Setup | None = None
    requests = []
    for event in events:
        if isinstance(event, ModelCallStarted):
            assert setup is not None
            requests.append(build_request(state, setup, bench.read).canonical())
        state = evolve(state, event)
        if isinstance(event, TaskStarted):
            setup = msgspec.json.decode(bench.read(event.setup), type=Setup)
    return requests


async def test_what_is_stored_grows_with_what_was_said_and_every_request_is_rebuilt(bench: Bench) -> None:
    task, requests, events = await carried_out(bench, CALLS, window=1_000_000)

    assert isinstance(events[-1], TaskCompleted)
    assert not [e for e in events if isinstance(e, ContextCompacted)]
    assert estimate_request(requests[-1], provider="offline") > 200_000
    assert await stored(bench, task) <= OVERHEAD_MAX * distinct(bench, events)
    assert rebuilt(bench, events) == [request.canonical() for request in requests]


async def test_a_conversation_that_outgrows_the_window_is_cut_and_goes_on(bench: Bench) -> None:
    task, requests, events = await carried_out(bench, CALLS, window=64_000)

    assert isinstance(events[-1], TaskCompleted)
    cuts = [e for e in events if isinstance(e, ContextCompacted)]
    assert 2 <= len(cuts) <= 8, "each cut lasts for many turns"
    counted = [e.usage.input_tokens for e in events if isinstance(e, ModelCallFinished)]
    assert max(counted) <= 64_000 * 0.75
    assert await stored(bench, task) <= OVERHEAD_MAX * distinct(bench, events)
    assert rebuilt(bench, events) == [request.canonical() for request in requests]
    last = requests[-1]
    uses = [b.call_id for m in last.messages for b in m.content if isinstance(b, ToolUse)]
    assert uses == [b.call_id for m in last.messages for b in m.content if isinstance(b, ToolResult)]
    assert len(uses) == CALLS


async def test_what_a_provider_counts_corrects_what_is_reserved_and_when_it_is_cut(bench: Bench) -> None:
    found = {}
    for number, factor in enumerate((1.0, 1.4), 1):

        def twice(n: int, factor: float = factor) -> Line:
            def line(request: ModelRequest) -> ModelReply:
                counted = round(estimate_request(request, provider="openai") * factor)
                return ModelReply((ToolUse(f"x{n}", "read", f'{{"text":"{n}"}}'),), "tool_use", Usage(counted, 40), "gpt-4.1")

            return line

        script = [*map(twice, range(20)), calls(("submit", '{"text":"done"}'))]
        model = ScriptedModel(script, provider="openai", wire="test.wire", name="gpt-4.1", simulated=False)
        await bench.worker(reader(results(20)), chain=(model,), name=f"w{number}")
        task = await bench.open(number=number)
        await bench.dispatch(task)
        found[factor] = [e for e in await bench.rest(task) if isinstance(e, ModelCallStarted)][-1]
        await bench.workers.pop().stop(grace_s=1)
    assert found[1.0].request_hash == found[1.4].request_hash
    assert found[1.0].estimated_tokens == found[1.4].estimated_tokens > 0
    output = 8_192 * 8  # micro-USD per token of gpt-4.1: input 2, output 8
    assert (found[1.4].reserved_micro_usd - output) == pytest.approx((found[1.0].reserved_micro_usd - output) * 1.4, rel=0.01)


async def test_a_cut_that_is_not_recorded_is_found_by_a_replay(bench: Bench) -> None:
    task, _, _ = await carried_out(bench, 30, window=32_000)
    recorded = await bench.recorded(task)
    at = next(n for n, r in enumerate(recorded) if r.type == "ContextCompacted")

    left_out = replay_task([r for n, r in enumerate(recorded) if n != at], bench.read)
    assert left_out.divergence is not None
    assert (left_out.divergence.field, left_out.divergence.expected) == ("step", "Compact")
