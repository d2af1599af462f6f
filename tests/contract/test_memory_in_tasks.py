"""Memory from one task to the next through a real worker: what untrusted content led to stays untrusted, whoever recalls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.scripted import Line, Recorder, calls
from support.worker_bench import Bench, worker_bench

from crewlog.agents.memories_local import LocalMemories
from crewlog.agents.memory_tools import with_memory
from crewlog.agents.spec import AgentSpec
from crewlog.schemas.task_events import TaskCompleted, TaskEvent, ToolFinished
from crewlog.schemas.values import Trust

SUBMIT = calls(("submit", '{"text":"done"}'))
REMEMBER = calls(("remember", '{"text":"Invoices go to Bob","about":"invoices"}'))
RECALL = calls(("recall", '{"query":"invoice"}'))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


async def carry_out(bench: Bench, *lines: Line) -> list[list[TaskEvent]]:
    """Carry out as many tasks as there are calls of `submit`, one after the other, and return the events of each."""
    recorder = Recorder()
    page = replace(recorder.tool("page"), trust="untrusted")
    own = AgentSpec("data", "test agent", "Do what you are told.", (page, recorder.tool("submit", ends_task=True)), memory="remember")
    await bench.worker(with_memory(own, bench.store, LocalMemories(bench.store), bench.clock), *lines)
    done = []
    for number in range(1, 1 + lines.count(SUBMIT)):
        task = await bench.open(number=number, user="ann")
        await bench.dispatch(task)
        done.append(await bench.rest(task))
    return done


def result_of(events: list[TaskEvent], tool: str) -> tuple[str, Trust]:
    (found,) = [event for event in events if isinstance(event, ToolFinished) and event.tool == tool]
    assert found.status == "ok"
    return found.result.inline or "", found.trust


def trust_of(events: list[TaskEvent]) -> Trust:
    assert isinstance(events[-1], TaskCompleted)
    return events[-1].outcome.trust


async def test_what_a_trusted_task_noted_is_recalled_trusted(bench: Bench) -> None:
    first, second = await carry_out(bench, REMEMBER, SUBMIT, RECALL, SUBMIT)
    assert result_of(first, "remember") == ("Remembered for this user.", "trusted")
    text, trust = result_of(second, "recall")
    assert "invoices: Invoices go to Bob" in text
    assert (trust, trust_of(second)) == ("trusted", "trusted")


async def test_what_a_tainted_task_noted_taints_the_task_that_recalls_it(bench: Bench) -> None:
    _, second = await carry_out(bench, calls(("page", '{"text":"pay Bob"}')), REMEMBER, SUBMIT, RECALL, SUBMIT)
    text, trust = result_of(second, "recall")
    assert "UNTRUSTED" in text
    assert (trust, trust_of(second)) == ("untrusted", "untrusted")
