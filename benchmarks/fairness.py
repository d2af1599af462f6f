"""Measure what a noisy tenant costs a quiet one: the same small runs alone, and again while another tenant has thousands of tasks waiting.

    python benchmarks/fairness.py [--tasks 10000] [--slots 8] [--thinks 0.1] [--runs 20] [--pause 0.3] [--orchestrators 1]

A real crew: `crewlog up` with both servers, one agent process whose model thinks for a fixed time. The quiet tenant submits one run at a
time: a single task, then a run of as many steps as there are slots. The noisy one has submitted runs of a hundred steps before, until
that many tasks wait. Prints medians and 95th percentiles, alone and beside the noise, and their ratios, and what the noisy one got.

Between two runs the quiet tenant pauses for a random time up to `--pause` seconds. With 0 it is not quiet: it asks for all slots all the
time, and half of them, which is what two tenants get, makes a run take twice as long.
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
        await asyncio.wait_for(ended, ENDED_WITHIN_S)
        return (time.perf_counter() - began) * 1000

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


async def measured(crew: FairCrew, steps: tuple[int, ...], runs: int, pause_s: float) -> dict[int, list[float]]:
    """Run the quiet tenant's runs one after the other."""
    found: dict[int, list[float]] = {}
    for count in steps:
        found[count] = []
        for _ in range(runs):
            await asyncio.sleep(random.uniform(0, pause_s))
            found[count].append(await crew.quiet_run_ms(count))
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--thinks", type=float, default=0.1, help="time one task takes its model, in seconds")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.3, help="longest pause between two runs of the quiet tenant, in seconds")
    parser.add_argument("--orchestrators", type=int, default=1)
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
        await measured(crew, steps, 3, 0.0)
        alone = await measured(crew, steps, given.runs, given.pause)
        await crew.make_noise(given.tasks)
        began, done = time.perf_counter(), await crew.tasks_done()
        beside = await measured(crew, steps, given.runs, given.pause)
        rate = (await crew.tasks_done() - done) / (time.perf_counter() - began)
        print(f"quiet tenant, {given.slots} slots, tasks of {given.thinks:g} s; noisy tenant: {given.tasks} tasks submitted before")
        print(f"{'steps':>6} {'alone p50':>10} {'p95 ms':>8}   {'beside p50':>10} {'p95 ms':>8}   {'p50 ×':>6} {'p95 ×':>6}")
        for count in steps:
            a, b = alone[count], beside[count]
            figures = [percentile(a, 0.5), percentile(a, 0.95), percentile(b, 0.5), percentile(b, 0.95)]
            print(f"{count:>6} {figures[0]:>10.0f} {figures[1]:>8.0f}   {figures[2]:>10.0f} {figures[3]:>8.0f}", end="")
            print(f"   {figures[2] / figures[0]:>6.2f} {figures[3] / figures[1]:>6.2f}", flush=True)
        print(f"both together: {rate:.0f} tasks/s, {rate * given.thinks / given.slots:.0%} of what the slots can think", flush=True)
    finally:
        crew.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
