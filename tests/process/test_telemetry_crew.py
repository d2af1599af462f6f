"""A real crew that is traced: one tree per run over all of its processes, whatever dies, and a collector that is away slows nothing down."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from support.collector import Collector, Seen, collecting, tree
from support.live_crew import LiveCrew, a_crew, only
from support.ports import reserved_port

SECRET = "kestrel-4711"
KEY = "key-of-a-collector"


@asynccontextmanager
async def traced(url: str, **env: str) -> AsyncIterator[LiveCrew]:
    """Run a crew that sends its traces to a collector."""
    given = {"CREWLOG_OTLP_ENDPOINT": url, "CREWLOG_OTLP_HEADERS": f"authorization=Bearer%20{KEY}", **env}
    manager = a_crew(*only("planner", "research"), **given)
    crew = await asyncio.to_thread(manager.__enter__)
    try:
        yield crew
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def submit(crew: LiveCrew, *arguments: str) -> Any:
    return await asyncio.to_thread(crew.json, "submit", *arguments, "--wait")


async def the_tree(collector: Collector, run_id: str) -> tuple[list[str], list[Seen]]:
    """Wait until a run's trace is whole, and draw it."""
    await collector.until(lambda: any(not span.parent for span in collector.of(run_id)))
    spans = collector.of(run_id)
    return tree(spans), spans


async def test_a_run_is_one_tree_over_all_processes_and_says_nothing_of_what_was_said() -> None:
    async with collecting() as collector, traced(collector.url) as crew:
        run_id = (await submit(crew, f"Find out about {SECRET}"))["run_id"]
        drawn, spans = await the_tree(collector, run_id)
        assert drawn[0] == "invoke_workflow run"
        assert {name.split()[0] for name in drawn} == {"invoke_workflow", "send", "process", "invoke_agent", "chat", "execute_tool"}
        assert {span.process.split("@")[0] for span in spans} == {"orchestrator", "agent"}
        assert len({span.process for span in spans}) >= 3
        assert {span.trace for span in collector.spans.values()} == {run_id.replace("-", "")}
        calls = [span for span in spans if span.name.startswith("chat ")]
        shown = await asyncio.to_thread(crew.json, "show", run_id)
        assert sum(span.attributes["gen_ai.usage.input_tokens"] for span in calls) == shown["input_tokens"]
        assert sum(span.attributes["gen_ai.usage.output_tokens"] for span in calls) == shown["output_tokens"]
        replayed = (await asyncio.to_thread(crew.run, "replay", run_id, "--trace")).stderr.split("trace ")[1].split()[0]
        again = collector.of(replayed)
        assert tree(again) == drawn
        (root,) = [span for span in again if not span.parent]
        assert root.links == tuple(f"{span.trace}/{span.span}" for span in spans if not span.parent)
        sent = b"".join(collector.bodies)
        assert SECRET.encode() not in sent
        assert KEY.encode() not in sent
        assert all(headers["authorization"] == f"Bearer {KEY}" for headers in collector.headers)


async def test_while_the_collector_is_away_runs_go_on_and_a_restart_loses_none_of_their_spans() -> None:
    loop = asyncio.get_running_loop()
    with reserved_port() as port:
        async with traced(f"http://127.0.0.1:{port}") as crew:
            run_id = (await submit(crew, "Say hello"))["run_id"]
            async with crew.client() as client:
                (projector,) = [p.pid for p in await client.processes() if p.name.startswith("projector")]
            os.kill(projector or 0, signal.SIGKILL)
            began = loop.time()
            second = (await submit(crew, "Say hello again"))["run_id"]
            assert loop.time() - began < 60
            async with collecting(port=port) as collector:
                for each in (run_id, second):
                    drawn, _ = await the_tree(collector, each)
                    assert drawn[0] == "invoke_workflow run"
            began = loop.time()
            await asyncio.to_thread(crew.stop)  # the collector is gone again
            assert loop.time() - began < 25, "whoever tries again waits for up to 30 s in between"
            assert "spans wait in the log" in crew.log()
