"""Measure one fan-out run: a goal with its own plan → 4 tasks on 4 kinds, each one zero-cost model turn and one tool call → answer.

    python benchmarks/fanout.py [--rounds 3] [--seconds 3] [--in-flight 1,8,32,128]

The hand-written floor (floor_fanout.py) runs on the same Postgres and its own nats-server, in turn with crewlog, round by round; the
table shows medians and the median of the ratios of each round. CPU seconds count all processes of a system, servers included, but
not the load generator. Also prints idle memory and CPU of a whole crew, and bytes of database per run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import asyncpg
import nats
from measure import cpu_seconds, descendants, machine, percentile, pss_mib

from crewlog.events.config import load
from crewlog.orchestrator.endpoints import owner_url, with_login

HERE = Path(__file__).parent
KINDS = ("bench-a", "bench-b", "bench-c", "bench-d")
BUILT_IN = ("planner", "research", "code", "data", "communicate")
GOAL_TIMEOUT_S = 30


@dataclass
class Level:
    """Figures of one system at one number of runs in flight."""

    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    catch_up_s: float = 0.0
    """How long the views and the relay took to be level with the log again, behind the load."""

    @property
    def runs(self) -> int:
        return len(self.latencies_ms)

    @property
    def rate(self) -> float:
        return self.runs / self.seconds

    @property
    def cpu_per_1000(self) -> float:
        return self.cpu_s / self.runs * 1000


async def load_level(
    one_run: Callable[[], Awaitable[None]], in_flight: int, seconds: float, pids: Callable[[], set[int]], settle: Callable[[], Awaitable[None]] | None = None
) -> Level:
    """Keep `in_flight` runs going for a while, each of them waiting for its own end; count the CPU until all is settled."""
    level = Level()
    cpu, began = cpu_seconds(pids()), time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            async with asyncio.timeout(GOAL_TIMEOUT_S):
                await one_run()
            level.latencies_ms.append((time.perf_counter() - start) * 1000)

    await asyncio.gather(*(client() for _ in range(in_flight)))
    level.seconds = time.perf_counter() - began
    if settle is not None:
        await settle()
        level.catch_up_s = time.perf_counter() - began - level.seconds
    level.cpu_s = cpu_seconds(pids()) - cpu
    return level


class Crew:
    """A real `crewlog up` in a folder of its own, with four benchmark agents beside it."""

    def __init__(self, home: Path) -> None:
        self.home, self.config = home, load(home=home)
        self._up: subprocess.Popen[bytes] | None = None
        self.agents: list[subprocess.Popen[bytes]] = []
        self.client: nats.NATS | None = None
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def start(self, *counts: str) -> float:
        """Start the crew and return how long it took, in seconds."""
        began = time.perf_counter()
        command = [sys.executable, "-P", "-m", "crewlog.orchestrator", "up", "--home", str(self.home), *counts]
        self._up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(self.home / "up.log").open("wb"))
        state = self.home / "state.json"
        while not (state.exists() and json.loads(state.read_text())["phase"] == "running"):
            if self._up.poll() is not None:
                raise SystemExit((self.home / "up.log").read_text())
            time.sleep(0.05)
        return time.perf_counter() - began

    def start_agents(self) -> None:
        login = with_login(self.config, "specialist")
        assert login.database_url is not None
        assert login.nats_url is not None
        urls = {
            "CREWLOG_DATABASE_URL": login.database_url.get_secret_value(),
            "CREWLOG_NATS_URL": login.nats_url.get_secret_value(),
            "CREWLOG_HOME": str(self.home),
        }
        for kind in KINDS:
            self.agents.append(subprocess.Popen([sys.executable, "-P", str(HERE / "fanout_agent.py"), kind], env={**os.environ, **urls}))

    async def connect(self) -> None:
        login = with_login(self.config, "operator")
        assert login.nats_url is not None
        self.client = await nats.connect(login.nats_url.get_secret_value(), inbox_prefix="_INBOX_operator")
        await self.client.subscribe("outcomes.default.*", cb=self._ended)
        await self.client.flush()
        deadline = time.monotonic() + 30
        while True:  # the agents' kinds are known as soon as they have registered
            try:
                await self.run()
            except (ValueError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def _ended(self, message: nats.aio.msg.Msg) -> None:
        future = self._waiting.pop(message.subject.rsplit(".", 1)[1], None)
        if future is not None and not future.done():
            future.set_result(None)

    async def run(self) -> None:
        """Submit one run and wait until it is durable that it has ended."""
        assert self.client is not None
        run_id = str(uuid4())
        self._waiting[run_id] = ended = asyncio.get_running_loop().create_future()
        steps = [{"key": kind, "type": kind, "objective": "Write a note about the benchmark."} for kind in KINDS]
        task = {"task_id": run_id, "type": "run", "objective": "Measure a fan-out run.", "plan": {"steps": steps}}
        reply = json.loads((await self.client.request("api.default.tasks.submit", json.dumps(task).encode(), timeout=GOAL_TIMEOUT_S)).data)
        if not reply["ok"]:
            raise ValueError(reply["error"]["message"])
        await ended

    async def settle(self) -> None:
        """Wait until the views and `events.>` hold everything the log holds."""
        connection = await self.database()
        last = await connection.fetchval("SELECT max(position) FROM es.events")
        while await connection.fetchval("SELECT min(position) FROM crewlog.checkpoints") < last:
            await asyncio.sleep(0.02)
        events = await connection.fetchval("SELECT count(*) FROM es.events")
        await connection.close()
        assert self.client is not None
        while json.loads((await self.client.request("$JS.API.STREAM.INFO.EVENTS", b"")).data)["state"]["last_seq"] < events:
            await asyncio.sleep(0.02)

    def pids(self) -> set[int]:
        assert self._up is not None
        return descendants(self._up.pid).union(*(descendants(a.pid) for a in self.agents))

    async def database(self) -> asyncpg.Connection:
        return await asyncpg.connect(owner_url(self.config))

    def stop(self) -> None:
        for process in (*self.agents, *([self._up] if self._up else [])):
            process.terminate()
        for process in (*self.agents, *([self._up] if self._up else [])):
            process.wait(30)


class Floor:
    """The hand-written system on the same Postgres."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder, self._database_url = folder, database_url
        self._processes: list[subprocess.Popen[bytes]] = []
        self._client: nats.NATS | None = None
        self._backends: set[int] = set()

    async def start(self) -> None:
        import floor_fanout

        connection = await asyncpg.connect(self._database_url)
        before = {row[0] for row in await connection.fetch("SELECT pid FROM pg_stat_activity")}
        await connection.execute(floor_fanout.DDL)
        server = subprocess.Popen(
            [Path(sys.executable).parent / "nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(self._folder)], stderr=subprocess.DEVNULL
        )
        self._processes.append(server)
        ports = self._folder / f"nats-server_{server.pid}.ports"
        while not (ports.exists() and ports.read_text().strip()):
            await asyncio.sleep(0.02)
        url = json.loads(ports.read_text())["nats"][0]
        for role, name in (("orchestrator", "orchestrator"), *(("worker", kind) for kind in KINDS)):
            command = [sys.executable, "-P", str(HERE / "floor_fanout.py"), role, name, url, self._database_url]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            await asyncio.to_thread(process.stdout.readline)
            self._processes.append(process)
        self._backends = {row[0] for row in await connection.fetch("SELECT pid FROM pg_stat_activity")} - before
        await connection.close()
        self._client = await nats.connect(url)

    async def run(self) -> None:
        assert self._client is not None
        await self._client.request("floor.goals", b"{}", timeout=GOAL_TIMEOUT_S)

    def pids(self) -> set[int]:
        return {p.pid for p in self._processes} | self._backends

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(10)


async def measure_idle(crew: Crew, seconds: float) -> None:
    """Print what a crew that has nothing to do costs."""
    await asyncio.sleep(40)  # let start-up settle: connections that only it needed are closed within half a minute
    cpu, began = cpu_seconds(crew.pids()), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (cpu_seconds(crew.pids()) - cpu) / (time.perf_counter() - began) * 100
    print(f"idle, whole crew with both servers: {pss_mib(crew.pids()):.0f} MiB proportional memory, {share:.2f} % of a core", flush=True)


async def measure_load(crew: Crew, floor: Floor, levels: list[int], rounds: int, seconds: float) -> None:
    """Run both systems in turn at every level, then print the table."""
    connection = await crew.database()
    size = (
        "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname IN ('es', 'rm') AND relkind = 'r'"
    )
    count = "SELECT count(*) FROM es.streams WHERE stream_id LIKE 'run/%'"
    size_before, runs_before = await connection.fetchval(size), await connection.fetchval(count)
    ours: dict[int, list[Level]] = {n: [] for n in levels}
    theirs: dict[int, list[Level]] = {n: [] for n in levels}
    for _ in range(rounds):
        for n in levels:
            ours[n].append(await load_level(crew.run, n, seconds, crew.pids, crew.settle))
            theirs[n].append(await load_level(floor.run, n, seconds, floor.pids))
    stored = (await connection.fetchval(size) - size_before) / (await connection.fetchval(count) - runs_before)
    await connection.close()
    print(
        f"{'in flight':>9} {'p50 ms':>8} {'p99 ms':>8} {'runs/s':>8} {'CPU-s/1000':>11}   "
        f"{'floor p50':>9} {'runs/s':>8} {'CPU-s/1000':>11}   {'p50 ×':>6} {'runs/s ×':>8} {'CPU ×':>6}"
    )
    for n in levels:
        a, b, pairs = ours[n], theirs[n], list(zip(ours[n], theirs[n], strict=True))

        def middle(values: list[float]) -> float:
            return statistics.median(values)

        p50 = [percentile(x.latencies_ms, 0.5) for x in a]
        ratio = middle([percentile(x.latencies_ms, 0.5) / percentile(y.latencies_ms, 0.5) for x, y in pairs])
        print(
            f"{n:>9} {middle(p50):>8.1f} {middle([percentile(x.latencies_ms, 0.99) for x in a]):>8.1f} {middle([x.rate for x in a]):>8.0f}"
            f" {middle([x.cpu_per_1000 for x in a]):>11.2f}   {middle([percentile(y.latencies_ms, 0.5) for y in b]):>9.1f} {middle([y.rate for y in b]):>8.0f}"
            f" {middle([y.cpu_per_1000 for y in b]):>11.2f}   {ratio:>6.2f} {middle([x.rate / y.rate for x, y in pairs]):>8.2f}"
            f" {middle([x.cpu_per_1000 / y.cpu_per_1000 for x, y in pairs]):>6.2f}",
            flush=True,
        )
    for n in levels:
        late = statistics.median(level.catch_up_s for level in ours[n])
        sustained = statistics.median(level.runs / (level.seconds + level.catch_up_s) for level in ours[n])
        print(f"{n:>9} in flight: views and events.> level with the log {late:.1f} s behind the load; runs/s with that counted: {sustained:.0f}")
    print(f"database: {stored / 1024:.1f} KiB per run in tables and indexes, log and views together")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--in-flight", default="1,8,32,128")
    parser.add_argument("--no-idle", action="store_true")
    given = parser.parse_args()
    print(machine(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    crew = Crew(home)
    floor = None
    try:
        print(f"first start, initdb included: {crew.start():.1f} s", flush=True)
        if not given.no_idle:
            await measure_idle(crew, 20)
        crew.stop()
        print(f"later start: {crew.start('--agents', ','.join(f'{kind}=0' for kind in BUILT_IN)):.1f} s", flush=True)
        crew.start_agents()
        await crew.connect()
        floor = Floor(folder, owner_url(crew.config))
        await floor.start()
        levels = [int(n) for n in given.in_flight.split(",")]
        for warm_up in (crew, floor):
            await load_level(warm_up.run, 16, 2, warm_up.pids)
        await measure_load(crew, floor, levels, given.rounds, given.seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            if floor is not None:
                floor.stop()
            crew.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
