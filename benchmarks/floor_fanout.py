"""The floor of the fan-out benchmark: the least that is still durable, written by hand, without crewlog.

One orchestrator and four workers as processes; core NATS carries the messages, every process appends to one Postgres table
through a group-commit loop of its own. Goal → 6 rows; each of 4 tasks → 3 rows before the effect and 3 after it; synthesis → 2 rows:
32 rows and 10 messages per run, and the outcome is durable before anybody acts on it. It validates nothing, recovers nothing,
projects nothing.

    python floor_fanout.py orchestrator|worker NAME NATS_URL DATABASE_URL
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from uuid import uuid4

import asyncpg
import nats
from nats.aio.msg import Msg

DDL = """
CREATE SCHEMA IF NOT EXISTS floor;
CREATE TABLE IF NOT EXISTS floor.events (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream text NOT NULL, ver int NOT NULL, body bytea NOT NULL, UNIQUE (stream, ver));
"""
INSERT = "INSERT INTO floor.events (stream, ver, body) SELECT * FROM unnest($1::text[], $2::int[], $3::bytea[])"
KINDS = ("bench-a", "bench-b", "bench-c", "bench-d")
BODY = json.dumps({"pad": "x" * 560}).encode()


class Appender:
    """Take all that is queued, one statement, one commit; each caller waits for its own rows."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._queue: list[tuple[str, int, int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def append(self, stream: str, first: int, count: int) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        self._queue.append((stream, first, count, future))
        self._wake.set()
        return future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._queue = self._queue, []
            streams = [stream for stream, _, count, _ in batch for _ in range(count)]
            versions = [first + n for _, first, count, _ in batch for n in range(count)]
            await self._connection.execute(INSERT, streams, versions, [BODY] * len(streams))
            for *_, future in batch:
                future.set_result(None)


async def orchestrator(client: nats.NATS, appender: Appender) -> None:
    open_runs: dict[str, tuple[int, str]] = {}

    async def goal(message: Msg) -> None:
        run = uuid4().hex
        open_runs[run] = (len(KINDS), message.reply)
        await appender.append(run, 1, 6)
        for kind in KINDS:
            await client.publish(f"floor.work.{kind}", json.dumps({"run": run, "task": f"{run}/{kind}", "pad": "x" * 400}).encode())

    async def result(message: Msg) -> None:
        run = json.loads(message.data)["run"]
        left, reply = open_runs[run]
        open_runs[run] = (left - 1, reply)
        if left == 1:
            del open_runs[run]
            await appender.append(run, 7, 2)
            await client.publish(reply, message.data)

    await client.subscribe("floor.goals", cb=spawning(goal))
    await client.subscribe("floor.results", cb=spawning(result))


async def worker(client: nats.NATS, appender: Appender, kind: str) -> None:
    async def work(message: Msg) -> None:
        task = json.loads(message.data)
        await appender.append(task["task"], 1, 3)
        await appender.append(task["task"], 4, 3)
        await client.publish("floor.results", message.data)

    await client.subscribe(f"floor.work.{kind}", queue=kind, cb=spawning(work))


_running: set[asyncio.Task[None]] = set()


def spawning(handler: Callable[[Msg], Coroutine[None, None, None]]) -> Callable[[Msg], Coroutine[None, None, None]]:
    """Handle messages side by side: the client's callbacks are serial."""

    async def start(message: Msg) -> None:
        task = asyncio.create_task(handler(message))
        _running.add(task)
        task.add_done_callback(_running.discard)

    return start


async def main() -> None:
    role, name, nats_url, database_url = sys.argv[1:]
    connection = await asyncpg.connect(database_url)
    client = await nats.connect(nats_url)
    appender = Appender(connection)
    await (orchestrator(client, appender) if role == "orchestrator" else worker(client, appender, name))
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
