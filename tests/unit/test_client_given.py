"""A program that gives the client something of another kind is told what is expected, by an error of crewlog's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from crewlog.events.clock import SystemClock
from crewlog.events.config import Config
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.client import Client
from crewlog.schemas.errors import ContractError, NotFound

RUN_ID = UUID(int=7)


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    async with AsyncExitStack() as exits:
        yield Client(Config(), MemoryBus(), clock=SystemClock(), exits=exits, store=MemoryStore())


MISTAKES: dict[str, tuple[Callable[[Any], Awaitable[Any]], str]] = {
    "a goal that is none": (lambda c: c.submit(None), "a goal in words, a Plan or an AgentTask; got NoneType None"),
    "a goal as bytes": (lambda c: c.submit(b"count"), "got bytes b'count'"),
    "one path": (lambda c: c.submit("count", attachments=Path("a.csv")), "attachments are a list of paths; got PosixPath"),
    "one path as text": (lambda c: c.submit("count", attachments="a.csv"), "attachments are a list of paths; got str 'a.csv'"),
    "a path that is none": (lambda c: c.submit("count", attachments=[7]), "is a path; got int 7"),
    "the answer of an id": (lambda c: c.answer(RUN_ID), r"a RunView is needed, as `await client.run\(RUN\)`.*; got UUID"),
    "the files of an id": (lambda c: c.save(RUN_ID, Path()), "a RunView is needed"),
    "a text that is one already": (lambda c: c.text("hello"), "is a Payload"),
    "a file by number": (lambda c: c.artifact(7), "named by its hash; got int 7"),
    "one run to pause": (lambda c: c.control.runs("pause", RUN_ID), "run_ids is a list of ids; got UUID"),
    "one run to pause, as text": (lambda c: c.control.runs("pause", str(RUN_ID)), "run_ids is a list of ids; got str"),
    "one status": (lambda c: anext(c.control.find(status="running")), "status is a list of states; got str 'running'"),
    "a tenant by number": (lambda c: anext(c.control.find(tenant=7)), "tenant 7 cannot be part of a subject"),
    "a goal that recurs": (lambda c: c.schedules.add("daily", "count", cron="0 7 * * *"), r"as `await client.prepare\(GOAL\)`.*; got str 'count'"),
    "a letter by name": (lambda c: c.letters.show("7"), "named by its number; got str '7'"),
    "copies without kinds": (lambda c: c.scale([4]), "numbers by kind.*got list"),
    "what is no JSON": (lambda c: c.cancel(object(), reason="wrong"), "runs.cancel cannot be asked"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_answered_with_what_is_expected(name: str, client: Any) -> None:
    mistake, told = MISTAKES[name]
    with pytest.raises(ContractError, match=told):
        await mistake(client)


async def test_an_id_needs_no_views(client: Any) -> None:
    assert await client.find_run(RUN_ID) == RUN_ID
    with pytest.raises(NotFound, match=f"run '{RUN_ID}' matches nothing"):
        await client.wait(RUN_ID)
