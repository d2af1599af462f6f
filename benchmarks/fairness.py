"""Measure what a noisy tenant costs a quiet one: the same small runs alone, and again while another tenant has thousands of tasks waiting.

    python benchmarks/fairness.py [--published] [--tasks 10000] [--slots 8] [--thinks 0.1] [--runs 20] [--pause 0.3] [--orchestrators 1]

A real crew: `crewlog up` with both servers, one agent process whose model thinks for a fixed time. The quiet tenant submits one run at a
time: a single task, then a run of as many steps as there are slots. The noisy one has submitted runs of a hundred steps before, until
that many tasks wait. Prints medians and 95th percentiles, alone and beside the noise, and their ratios, and what the noisy one got.

Between two runs the quiet tenant pauses for a random time up to `--pause` seconds. With 0 it is not quiet: it asks for all slots all the
time, and half of them, which is what two tenants get, makes a run take twice as long.

With `--published` both publish to `tasks.<tenant>.<type>` instead, the noisy one all of its tasks at once, each of them a run; the quiet
one publishes its next single task when the last one has ended, for as long as tasks of the noisy one wait to be taken in. Printed is when
the verdict came and when the run ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from fanout import BUILT_IN, HERE, Crew
from measure import machine, percentile

from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.orchestrator.endpoints import with_login
from crewlog.orchestrator.home import Home

KIND = "bench-fair"
STEPS_PER_RUN = 100
ENDED_WITHIN_S = 120.0


class FairCrew(Crew):
    """A crew with one kind of agent, and two tenants."""

    async def begin(self, slots: int, thinks_s: float, orchestrators: int) -> None:
        """Start the agent and further orchestrators, and wait until its kind is known."""
        self._spawn("specialist", str(HERE / "fanout_agent.py"), KIND, str(slots), str(thinks_s))
        for _ in range(orchestrators - 1):
            self._spawn("orchestrator", "-m", "crewlog.orchestrator", "orchestrator")
        await self.connect()

    def _spawn(self, role: str, *command: str) -> None:
        login = with_login(self.config, role)
        assert login.database_url is not None
        assert login.nats_url is not None
        urls = {"CREWLOG_DATABASE_URL": login.database_url.get_secret_value(), "CREWLOG_NATS_URL": login.nats_url.get_secret_value()}
        self.agents.append(subprocess.Popen([sys.executable, "-P", *command], env={**os.environ, **urls, "CREWLOG_HOME": str(self.home)}))

    async def connect(self) -> None:
        import nats

        login = with_login(self.config, "operator")
        assert login.nats_url is not None
        self.client = await nats.connect(login.nats_url.get_secret_value(), inbox_prefix="_INBOX_operator")
        await self.client.subscribe("outcomes.quiet.*", cb=self._ended)
        await self.client.flush()
        deadline = time.monotonic() + 30
        while True:
            try:
                await self.submit("quiet", 1)
            except ValueError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def submit(self, tenant: str, steps: int) -> str:
        """Submit one run and return its id."""
        assert self.client is not None
        run_id = str(uuid4())
        body: dict[str, Any] = {"task_id": run_id, "type": KIND, "objective": "Write a note about the benchmark.", "timeout_seconds": 86_400}
        if steps > 1:
            plan = {"steps": [{"key": f"s{n}", "type": KIND, "objective": "Write a note about the benchmark."} for n in range(steps)]}
            body |= {"type": "run", "plan": plan}
        reply = json.loads((await self.client.request(f"api.{tenant}.tasks.submit", json.dumps(body).encode(), timeout=30)).data)
        if not reply["ok"]:
            raise ValueError(reply["error"]["message"])
        return run_id

    async def quiet_run_ms(self, steps: int) -> float:
        """Run one run of the quiet tenant and return how long it took, in milliseconds."""
        began = time.perf_counter()
        ended = asyncio.get_running_loop().create_future()
        run_id = await self.submit("quiet", steps)
        self._waiting[run_id] = ended  # no answer overtakes the verdict on a submission that takes a model's time to end
        async with asyncio.timeout(ENDED_WITHIN_S):
            await ended
        return (time.perf_counter() - began) * 1000

    async def quiet_task_ms(self) -> tuple[float, float]:
        """Publish one task of the quiet tenant; return when it was taken in, and when it had ended, in milliseconds."""
        assert self.client is not None
        run_id, inbox = str(uuid4()), self.client.new_inbox()
        ended = self._waiting[run_id] = asyncio.get_running_loop().create_future()
        verdict = await self.client.subscribe(inbox, max_msgs=1)
        began = time.perf_counter()
        await self.client.publish(f"tasks.quiet.{KIND}", small_task(run_id), headers={"Reply-To": inbox})
        answer = json.loads((await verdict.next_msg(timeout=ENDED_WITHIN_S)).data)
        taken_s = time.perf_counter() - began
        if not answer["ok"]:
            raise ValueError(answer["error"]["message"])
        async with asyncio.timeout(ENDED_WITHIN_S):
            await ended
        return taken_s * 1000, (time.perf_counter() - began) * 1000

    async def publish_noise(self, tasks: int) -> None:
        """Let the noisy tenant publish that many tasks at once."""
        assert self.client is not None
        for _ in range(tasks - 1):
            await self.client.publish(f"tasks.noisy.{KIND}", small_task(str(uuid4())))
        await self.client.request(f"tasks.noisy.{KIND}", small_task(str(uuid4())), timeout=60)  # confirmed: all before it are stored too

    async def not_taken(self) -> int:
        """Count the tasks that wait to be taken in, those of the quiet tenant left out."""
        assert self.client is not None
        body = json.dumps({"subjects_filter": "tasks.noisy.>"}).encode()
        info = json.loads((await self.client.request("$JS.API.STREAM.INFO.TASKS", body, timeout=30)).data)
        return sum((info["state"].get("subjects") or {}).values())

    async def tasks_done(self) -> int:
        """Count the tasks of all tenants that have ended."""
        import asyncpg

        state = Home(self.home).state()
        assert state is not None
        assert state.database_port is not None
        connection = await asyncpg.connect(load_credentials(self.home).postgres_url(ADMIN, state.database_port))
        count = await connection.fetchval("SELECT count(*) FROM es.events WHERE type = 'TaskCompleted'")
        await connection.close()
        return int(count)

    async def make_noise(self, tasks: int) -> None:
        """Let the noisy tenant submit until so many tasks wait."""
        for _ in range(0, tasks, STEPS_PER_RUN):
            await self.submit("noisy", min(STEPS_PER_RUN, tasks))


def small_task(run_id: str) -> bytes:
    return json.dumps({"task_id": run_id, "type": KIND, "objective": "Write a note about the benchmark.", "timeout_seconds": 86_400}).encode()


async def measured(crew: FairCrew, steps: tuple[int, ...], runs: int, pause_s: float) -> dict[int, list[float]]:
    """Run the quiet tenant's runs one after the other."""
    found: dict[int, list[float]] = {}
    for count in steps:
        found[count] = []
        for _ in range(runs):
            await asyncio.sleep(random.uniform(0, pause_s))
            found[count].append(await crew.quiet_run_ms(count))
    return found


async def published(crew: FairCrew, tasks: int, runs: int, pause_s: float) -> None:
    """Compare single tasks of the quiet tenant, published alone and behind those of the noisy one, and print what was found."""
    alone: list[tuple[float, float]] = []
    for _ in range(3 + runs):
        await asyncio.sleep(random.uniform(0, pause_s))
        alone.append(await crew.quiet_task_ms())
    alone = alone[3:]
    began = time.perf_counter()
    await crew.publish_noise(tasks)
    print(f"the noisy tenant published {tasks} tasks in {time.perf_counter() - began:.1f} s", flush=True)
    beside: list[tuple[float, float]] = []
    while left := await crew.not_taken():
        beside.append(await crew.quiet_task_ms())
        print(f"    {left} wait; taken in after {beside[-1][0]:.0f} ms, ended after {beside[-1][1]:.0f} ms")
    took_s = time.perf_counter() - began
    print(f"all of them taken in after {took_s:.1f} s: {tasks / took_s:.0f} a second")
    print(f"{'':>9} {'alone p50':>10} {'p95 ms':>8}   {'beside p50':>10} {'p95 ms':>8}   {'p50 ×':>6} {'p95 ×':>6}")
    for what, a, b in (("taken in", [x[0] for x in alone], [x[0] for x in beside]), ("ended", [x[1] for x in alone], [x[1] for x in beside])):
        print_line(f"{what:>9}", a, b)


def print_line(what: str, alone: list[float], beside: list[float]) -> None:
    """Print medians, 95th percentiles and their ratios."""
    figures = [percentile(alone, 0.5), percentile(alone, 0.95), percentile(beside, 0.5), percentile(beside, 0.95)]
    print(f"{what} {figures[0]:>10.0f} {figures[1]:>8.0f}   {figures[2]:>10.0f} {figures[3]:>8.0f}", end="")
    print(f"   {figures[2] / figures[0]:>6.2f} {figures[3] / figures[1]:>6.2f}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--thinks", type=float, default=0.1, help="time one task takes its model, in seconds")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.3, help="longest pause between two runs of the quiet tenant, in seconds")
    parser.add_argument("--orchestrators", type=int, default=1)
    parser.add_argument("--published", action="store_true", help="measure the way in by `tasks.<tenant>.<type>`")
    given = parser.parse_args()
    print(machine(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    crew = FairCrew(home)
    steps = (1, given.slots)
    try:
        crew.start("--agents", ",".join(f"{kind}=0" for kind in BUILT_IN))
        await crew.begin(given.slots, given.thinks, given.orchestrators)
        if given.published:
            await published(crew, given.tasks, given.runs, given.pause)
            return
        await measured(crew, steps, 3, 0.0)
        alone = await measured(crew, steps, given.runs, given.pause)
        await crew.make_noise(given.tasks)
        began, done = time.perf_counter(), await crew.tasks_done()
        beside = await measured(crew, steps, given.runs, given.pause)
        rate = (await crew.tasks_done() - done) / (time.perf_counter() - began)
        print(f"quiet tenant, {given.slots} slots, tasks of {given.thinks:g} s; noisy tenant: {given.tasks} tasks submitted before")
        print(f"{'steps':>6} {'alone p50':>10} {'p95 ms':>8}   {'beside p50':>10} {'p95 ms':>8}   {'p50 ×':>6} {'p95 ×':>6}")
        for count in steps:
            print_line(f"{count:>6}", alone[count], beside[count])
        print(f"both together: {rate:.0f} tasks/s, {rate * given.thinks / given.slots:.0%} of what the slots can think", flush=True)
    finally:
        crew.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
