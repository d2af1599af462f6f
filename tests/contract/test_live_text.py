"""Answers while they are written, and what a worker says of its providers: on the bus and in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.scripted import Recorder, ScriptedModel, calls
from support.worker_bench import WITHIN_S, Bench, worker_bench

from crewlog.agents.breaker import Breakers
from crewlog.agents.live_text import PIECE_CHARS_MAX, LiveText
from crewlog.agents.model import ModelError, OnText
from crewlog.agents.provider_watch import ProviderWatch
from crewlog.events.bus import Message
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.ids import provider_stream
from crewlog.schemas.system_events import ProviderStateChanged


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as made:
        yield made


class Writing(ScriptedModel):
    """Tells its answer piece by piece before it gives it."""

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        assert on_text is not None, "a real model is asked to stream"
        for piece in ("Once ", "upon ", "a time " + "x" * PIECE_CHARS_MAX):
            on_text(piece)
        return await super().complete(request, timeout_s=timeout_s, on_text=on_text)


async def test_an_answer_is_told_while_it_is_written(bench: Bench) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def hear(message: Message) -> None:
        heard.put_nowait(message)

    await bench.bus.subscribe("live.default.>", hear)
    model = Writing([calls(("submit", '{"text":"42"}'))], wire="test", provider="acme", name="a", simulated=False)
    await bench.worker(Recorder(), chain=(model,), live=LiveText(bench.bus.publish))
    task = await bench.open()
    await bench.dispatch(task)
    await bench.rest(task)
    async with asyncio.timeout(WITHIN_S):
        pieces = [await heard.get(), await heard.get()]
    assert {m.subject for m in pieces} == {f"live.default.{task.run_id}.{task.task_id}"}
    told = [json.loads(m.data) for m in pieces]
    assert {t["call_id"] for t in told} == {"m1-1"}
    assert "".join(t["text"] for t in told).startswith("Once upon a time xxx")


async def test_a_breaker_that_opens_and_closes_is_in_the_log_and_in_the_heartbeat(bench: Bench) -> None:
    watch = ProviderWatch(bench.store, bench.clock, "w1")
    breakers = Breakers(watch.changed)
    beats: asyncio.Queue[Message] = asyncio.Queue()

    async def hear(message: Message) -> None:
        beats.put_nowait(message)

    a = ScriptedModel([ModelError("auth", "no such key")], wire="test", provider="acme", name="a", simulated=False)
    b = ScriptedModel([calls(("submit", '{"text":"42"}'))], wire="test", provider="acme", name="b", simulated=False)
    await bench.worker(Recorder(), chain=(a, b), breakers=breakers)
    task = await bench.open()
    await bench.dispatch(task)
    await bench.rest(task)
    await watch.stop()
    (recorded,) = await bench.store.read_streams({provider_stream("acme"): 0})
    changed = recorded.event()
    assert isinstance(changed, ProviderStateChanged)
    assert (changed.worker, changed.model, changed.state, changed.reason) == ("w1", "a", "open", "auth")
    assert changed.until_us > bench.clock.now_us()
    await bench.bus.subscribe("telemetry.data.*", hear)
    await bench.worker(Recorder(), chain=(a, b), breakers=breakers, name="w2")
    async with asyncio.timeout(WITHIN_S):
        beat = json.loads((await beats.get()).data)
    assert beat["providers"] == {"acme/a": "open", "acme/b": "closed"}
