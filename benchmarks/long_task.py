"""Measure what one long task costs: stored bytes against what was said, and the time in which its requests are built and hashed.

    python benchmarks/long_task.py [--calls 100] [--tokens 2000]

One worker carries out one task against a Postgres of its own: every turn calls a tool once, whose result is a new text of that many
tokens. It is done once with a window that holds all of it, and once with a window of a quarter, so that old results are left out on the
way. Then the log is read back, every request is built from it anew, and its hash compared with what was sent.

The floor of building and estimating requests is what naming them takes: JSON and SHA-256 of the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
from measure import machine
from pydantic import BaseModel

from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.conversation import build_request
from crewlog.agents.journal import Journal
from crewlog.agents.model import OnText
from crewlog.agents.rederive import replay_task
from crewlog.agents.setup import Setup
from crewlog.agents.task_state import evolve, initial_state, opened_state
from crewlog.agents.tokens import estimate_request, estimate_tokens
from crewlog.agents.work import Workshop, work
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import SystemClock
from crewlog.events.migrate import ensure_database, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.store import NO_STREAM, AppendRequest, Recorded, Write
from crewlog.schemas.blocks import ModelReply, ModelRequest, ToolUse
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import ContextCompacted, ModelCallStarted, TaskEvent, TaskOpened, TaskStarted
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome


class Which(BaseModel):
    """Arguments of both tools."""

    number: int


@dataclass
class Reader:
    """A model that asks for one text after the other, and what it was sent."""

    calls: int
    sent: list[bytes] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    wire: str = "offline"
    provider: str = "bench"
    name: str = "reader-1"
    simulated: bool = True

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002
        self.sent.append(request.canonical())
        self.tokens.append(estimate_request(request, provider=self.provider))
        number = len(self.sent)
        tool = "read" if number <= self.calls else "submit"
        return ModelReply((ToolUse("call", tool, f'{{"number":{number}}}'),), "tool_use", Usage(self.tokens[-1], 30), self.name)


def texts(count: int, tokens: int) -> list[str]:
    """Make different texts of about so many tokens."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(2_000)]
    per_word = estimate_tokens(" ".join(words)) / len(words)
    return [" ".join(draw.choices(words, k=round(tokens / per_word))) for _ in range(count)]


def agent(said: list[str]) -> AgentSpec:
    """Make the agent that reads them."""

    async def read(_: ToolContext, args: Which) -> ToolOutput:
        return ToolOutput(said[args.number - 1])

    async def submit(_: ToolContext, args: Which) -> ToolOutput:
        return ToolOutput("done", outcome=Outcome(f"read {args.number - 1} texts"))

    tools = (
        ToolSpec("read", "Read a text.", Which, read, effect="read", trust="trusted"),
        ToolSpec("submit", "End the task.", Which, submit, effect="idempotent", trust="trusted", ends_task=True),
    )
    return AgentSpec("reader", "Reads.", "Read all texts, then submit.", tools)


async def carry_out(store: PostgresStore, folder: Path, model: Reader, said: list[str], window: int) -> tuple[AgentTask, float]:
    """Run one task to its end; returns it and the CPU seconds it took this process."""
    clock = SystemClock()
    limits = {"turns_max": 1000, "tool_calls_max": 10_000}
    task = parse_task({"task_id": str(uuid4()), "run_id": str(uuid4()), "type": "reader", "objective": "Read all of it.", "limits": limits})
    run_id, task_id = RunId(UUID(str(task.run_id))), TaskId(UUID(str(task.task_id)))
    opened = TaskOpened("reader", "a", 0, msgspec.Raw(msgspec.json.encode(task)))
    write = Write(task_stream(task_id), (opened,), NO_STREAM, "reader")
    await store.append(AppendRequest((write,), [clock.new_id()], clock.now_us(), run_id, task_id))
    shop = Workshop("w1", agent(said), (model,), await open_artifacts(folder / "artifacts"), clock, folder / "work", context_window=window)
    began = time.process_time()
    ended = await work(shop, Journal(store, clock, opened_state(task)), attempt=1)
    assert ended == "completed", ended
    return task, time.process_time() - began


async def stored_bytes(url: str, task: AgentTask) -> tuple[int, int]:
    """Return the bytes of the task's events, and of the blobs they refer to, both uncompressed."""
    connection = await asyncpg.connect(url)
    stream = task_stream(TaskId(task.task_id))
    (events,) = await connection.fetchrow("SELECT sum(octet_length(data::text)) FROM es.events WHERE stream_id = $1", stream)
    (blobs,) = await connection.fetchrow(
        "SELECT coalesce(sum(size), 0) FROM es.blobs b WHERE EXISTS "
        "(SELECT FROM es.events e WHERE e.stream_id = $1 AND position(encode(b.hash, 'hex') in e.data::text) > 0)",
        stream,
    )
    await connection.close()
    return events, blobs


def payloads(value: object) -> list[Payload]:
    """List the payloads anywhere inside an event."""
    if isinstance(value, Payload):
        return [value]
    if isinstance(value, msgspec.Struct):
        return [p for name in value.__struct_fields__ for p in payloads(getattr(value, name))]
    return [p for item in value for p in payloads(item)] if isinstance(value, tuple) else []


@dataclass
class Rebuilt:
    """Every request built again from the log. CPU seconds of building, of naming (JSON and SHA-256), and of estimating its tokens."""

    requests: list[bytes]
    building_s: list[float]
    naming_s: list[float]
    estimating_s: list[float]


async def rebuild(store: PostgresStore, recorded: list[Recorded]) -> Rebuilt:
    """Fold the task and build each request where it was asked for; checks that a replay agrees."""
    events = [event for r in recorded if isinstance(event := r.event(), TaskEvent)]
    refs = sorted({p.ref for event in events for p in payloads(event) if p.ref is not None})
    found = {ref: data.decode() for ref, data in (await store.get_blobs(refs)).items()}

    def read(payload: Payload) -> str:
        return payload.inline if payload.inline is not None else found[payload.ref]  # type: ignore[index]

    replayed = replay_task(recorded, read)
    assert replayed.divergence is None, str(replayed.divergence)
    state, setup = initial_state(), None
    rebuilt = Rebuilt([], [], [], [])
    for event in events:
        if isinstance(event, ModelCallStarted):
            assert setup is not None
            began = time.thread_time()
            request = build_request(state, setup, read)
            built = time.thread_time()
            assert request.request_hash() == event.request_hash
            named = time.thread_time()
            estimate_request(request, provider="bench")
            rebuilt.estimating_s.append(time.thread_time() - named)
            rebuilt.naming_s.append(named - built)
            rebuilt.building_s.append(built - began)
            rebuilt.requests.append(request.canonical())
        state = evolve(state, event)
        if isinstance(event, TaskStarted):
            setup = msgspec.json.decode(read(event.setup), type=Setup)
    return rebuilt


async def measure(store: PostgresStore, url: str, folder: Path, given: argparse.Namespace, window: int) -> None:
    """Carry out one task and print what it cost."""
    model, said = Reader(given.calls), texts(given.calls, given.tokens)
    task, cpu_s = await carry_out(store, folder, model, said, window)
    recorded = list(await store.read_streams({task_stream(TaskId(task.task_id)): 0}))
    events = [r.event() for r in recorded]
    rebuilt = await rebuild(store, recorded)
    in_events, in_blobs = await stored_bytes(url, task)
    distinct = sum({p.ref or p.inline: p.size for event in events for p in payloads(event)}.values())
    cuts = [e for e in events if isinstance(e, ContextCompacted)]
    whole = sum(map(len, model.sent))
    assert rebuilt.requests == model.sent
    print(f"\nwindow of {window:,} tokens: {given.calls} tool calls, last request about {model.tokens[-1]:,} tokens, largest {max(model.tokens):,}")
    print(f"  stored             {in_events + in_blobs:>12,} bytes ({in_events:,} in {len(events)} events, {in_blobs:,} in blobs)")
    print(f"  distinct content   {distinct:>12,} bytes   stored / distinct {(in_events + in_blobs) / distinct:.3f}")
    print(f"  all requests whole {whole:>12,} bytes   stored / whole    {(in_events + in_blobs) / whole:.3f}")
    print(f"  left out           {sum(r.size for cut in cuts for r in cut.replaced):>12,} bytes in {len(cuts)} cuts")
    print(f"  rebuilt from the log: {len(rebuilt.requests)} requests, byte for byte")
    for name, spent in (("building", rebuilt.building_s), ("naming", rebuilt.naming_s), ("estimating", rebuilt.estimating_s)):
        print(f"  {name:<12} all requests {sum(spent) * 1e3:7.1f} ms, the last {spent[-1] * 1e3:.2f} ms")
    print(f"  CPU of the whole task {cpu_s * 1e3:.0f} ms")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=2_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", admin_password=uuid4().hex)
    await server.start()
    try:
        url = server.admin_url()
        await ensure_database(url)
        await migrate(url)
        store = await PostgresStore.open(url, actor="benchmark", clock=SystemClock())
        print(machine())
        total = given.calls * given.tokens
        for window in (total * 4, max(total // 4, 16_000)):
            await measure(store, url, folder, given, window)
        await store.close()
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
