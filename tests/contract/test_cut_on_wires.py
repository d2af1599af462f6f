"""A conversation that was cut is still one that every provider takes: each call with its result, what a provider wrote for itself as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.model_server import Canned
from support.scripted import Recorder
from support.wires import ANTHROPIC, CHAT, GEMINI, RESPONSES, WIRES, Said, Wire
from support.worker_bench import Bench, worker_bench

from crewlog.schemas.task_events import ContextCompacted, Nudged, TaskCompleted

TURNS = 8
KEPT = 4
LONG = "row " * 800


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


def looks(n: int, text: str) -> Said:
    return Said(f"Turn {n}.", ((f"call_{n}", "look", json.dumps({"text": text})),), thinking="hm")


def answers(wire: Wire, texts: list[str]) -> list[Canned]:
    """One turn per text, then the provider finds the conversation too long, then the end."""
    said = [looks(n, text) for n, text in enumerate(texts, 1)]
    submit = Said("", (("call_end", "submit", '{"text":"done"}'),))
    too_long = Canned(400, wire.problem(400, "invalid_request_error", "prompt is too long: 300000 tokens > 200000 maximum"))
    return [*(_canned(wire, s) for s in said), too_long, _canned(wire, submit)]


def _canned(wire: Wire, said: Said) -> Canned:
    return Canned(events=wire.events(said))


def spoken(wire: Wire, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield ("call" | "result", id) of a request in the order in which the provider reads it; Gemini matches by name where ids were left out."""
    if wire is ANTHROPIC:
        for block in (b for m in body["messages"] for b in m["content"]):
            if block["type"] in ("tool_use", "tool_result"):
                yield ("call", block["id"]) if block["type"] == "tool_use" else ("result", block["tool_use_id"])
    elif wire is RESPONSES:
        for item in body["input"]:
            if item["type"] in ("function_call", "function_call_output"):
                yield "call" if item["type"] == "function_call" else "result", item["call_id"]
    elif wire is CHAT:
        for message in body["messages"]:
            yield from (("call", call["id"]) for call in message.get("tool_calls") or ())
            if message["role"] == "tool":
                yield "result", message["tool_call_id"]
    elif wire is GEMINI:
        for part in (p for c in body["contents"] for p in c["parts"]):
            if "functionCall" in part or "functionResponse" in part:
                kind = "call" if "functionCall" in part else "result"
                yield kind, (part.get("functionCall") or part["functionResponse"])["id"]


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_every_call_keeps_its_result_and_old_turns_lose_what_is_the_providers_own(bench: Bench, wire: Wire) -> None:
    async with wire.asking(*answers(wire, [f"{n} {LONG}" for n in range(TURNS)])) as (model, server):
        await bench.worker(Recorder(), chain=(model,))
        task = await bench.open()
        await bench.dispatch(task)
        events = await bench.rest(task)

    assert isinstance(events[-1], TaskCompleted), events[-1]
    assert [len(e.replaced) for e in events if isinstance(e, ContextCompacted)] == [TURNS - KEPT]
    whole, cut = server.requests[-2:]
    said = list(spoken(wire, cut))
    assert said == list(spoken(wire, whole))
    assert said[::2] == [("call", id_) for _, id_ in said[1::2]]
    assert len({id_ for _, id_ in said}) == TURNS
    text, before = json.dumps(cut), json.dumps(whole)
    assert (text.count("left out to make room"), before.count("left out to make room")) == (TURNS - KEPT, 0)
    for own in ("c2ln", "c2VjcmV0", "Zmlyc3Q+"):  # signatures and encrypted reasoning
        assert text.count(own) == before.count(own) * KEPT // TURNS


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_a_nudge_is_read_behind_the_results(bench: Bench, wire: Wire) -> None:
    async with wire.asking(*answers(wire, ["a", "a", "a"])[:3], *answers(wire, [])[1:]) as (model, server):
        await bench.worker(Recorder(), chain=(model,))
        task = await bench.open()
        await bench.dispatch(task)
        events = await bench.rest(task)

    assert isinstance(events[-1], TaskCompleted), events[-1]
    (nudged,) = [e for e in events if isinstance(e, Nudged)]
    body = server.requests[-1]
    last = json.dumps((body.get("messages") or body.get("input") or body.get("contents"))[-2:])
    assert last.index(list(spoken(wire, body))[-1][1]) < last.index(json.dumps(nudged.text)[1:-1])
