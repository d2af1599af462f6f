"""How soon work goes on when somebody dies. With the product's own settings.

    uv run python benchmarks/recovery.py [worker] [orchestrator]

worker        kill -9 of a worker with tasks at work, and how long until another one has taken each over; bound: ack wait (30 s) + 1 s
orchestrator  kill -9 of one of two orchestrators under a steady load of short runs, several times; bound: 1 s more than without
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from measure import machine, percentile

from crewlog.events import jetstream
from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.chaos_agent import KIND
from crewlog.orchestrator.chaos_crew import ChaosCrew
from crewlog.orchestrator.chaos_sink import Sink
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.endpoints import with_login
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.task_events import TERMINAL_TYPES, TaskStarted

CLOCK = SystemClock()


class Bench(NamedTuple):
    """A running crew and who talks to it."""

    crew: ChaosCrew
    client: Client
    bus: NatsBus
    home: Path

    def pids(self, part: str) -> dict[str, int]:
        return {victim.name: victim.pid for victim in self.crew.victims() if victim.part == part}


@asynccontextmanager
async def a_bench(*, workers: int, orchestrators: int) -> AsyncIterator[Bench]:
    """Run a crew with the product's settings."""
    home = Path(tempfile.mkdtemp(prefix="crewlog-recovery-"))
    home.chmod(0o755)
    config = load(home=home).model_copy(update={"database_url": None, "nats_url": None})
    sink = Sink(home / "sink", random.Random(1))
    crew = ChaosCrew(config, sink.path, CLOCK, workers=workers, orchestrators=orchestrators, settings={"CREWLOG_SLOTS": "8"})
    await sink.start()
    try:
        await crew.start()
        login = with_login(config, "operator")
        assert login.nats_url is not None
        bus = await NatsBus.connect(login.nats_url.get_secret_value(), name="bench")
        async with Client.connect(login) as client:
            yield Bench(crew, client, bus, home)
        await bus.close()
    finally:
        await crew.stop()
        await sink.stop()
        shutil.rmtree(home, ignore_errors=True)


async def worker(kills: int) -> None:
    """Kill the worker that has tasks at work; another one must have them soon."""
    async with a_bench(workers=2, orchestrators=1) as bench:
        store, waits = await bench.client.store(), list[float]()
        for _ in range(kills):
            runs = [(await bench.client.submit("stamp stamp stamp stamp finish", kind=KIND)).run_id for _ in range(8)]
            started = await begun(bench, runs, at_least=1)
            names = {event.worker for event in started.values()}
            killed_us = CLOCK.now_us()
            name, pid = next(iter(bench.pids("agents").items()))
            os.kill(pid, signal.SIGKILL)
            await until_ended(bench, runs, within_s=90)
            for run_id in runs:
                recorded = await store.read_run(run_id)
                takeovers = [r.occurred_us for r in recorded if isinstance(event := r.event(), TaskStarted) and event.taken_over_from in names]
                waits += [(at_us - killed_us) / 1e6 for at_us in takeovers if at_us > killed_us]
        print(f"worker: {kills} killed, {len(waits)} tasks taken over after {min(waits):.1f} to {max(waits):.1f} s (ack wait {jetstream.ACK_WAIT_S:g} s)")
        extra = max(waits) - jetstream.ACK_WAIT_S
        print(f"        {'kept' if extra <= 1 else 'MISSED'}: at most ack wait + 1 s; it was ack wait {extra:+.2f} s, and {name} was the last one", flush=True)


async def begun(bench: Bench, runs: Sequence[RunId], *, at_least: int) -> dict[RunId, TaskStarted]:
    """Wait until tasks of these runs are at work."""
    store = await bench.client.store()
    while True:
        recorded = [r for run_id in runs for r in await store.read_run(run_id)]
        found = {RunId(r.run_id): event for r in recorded if isinstance(event := r.event(), TaskStarted) and r.run_id is not None}
        if len(found) >= at_least * len(runs):
            return found
        await asyncio.sleep(0.02)


async def until_ended(bench: Bench, runs: Sequence[RunId], *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        for run_id in runs:
            await bench.client.wait(run_id)


async def orchestrator(kills: int) -> None:
    """Kill one of two orchestrators again and again under short runs; compare how long runs take around a kill and without one."""
    async with a_bench(workers=2, orchestrators=2) as bench:
        store, stop = await bench.client.store(), asyncio.Event()
        accepted: list[RunId] = []

        async def submit() -> None:
            while not stop.is_set():
                task = await bench.client.prepare("stamp finish", kind=KIND)
                while True:
                    try:
                        accepted.append((await bench.client.submit(task)).run_id)
                    except Exception:  # noqa: BLE001 - whoever was asked was killed: the same task again
                        continue
                    break
                await bench.client.wait(accepted[-1])

        loading = [asyncio.create_task(submit()) for _ in range(6)]
        killed: list[float] = []
        await asyncio.sleep(10)
        for _ in range(kills):
            name = random.choice(["orchestrator-1", "orchestrator-2"])
            os.kill(bench.pids("orchestrators")[name], signal.SIGKILL)
            killed.append(CLOCK.now_us())
            await asyncio.sleep(6)
        stop.set()
        await asyncio.gather(*loading)
        calm, struck = list[float](), list[float]()
        for run_id in accepted:
            recorded = [r for r in await store.read_run(run_id) if r.stream == run_stream(run_id)]
            begin_us, end_us = recorded[0].occurred_us, next(r.occurred_us for r in recorded if r.type in TERMINAL_TYPES)
            (struck if any(begin_us <= at <= end_us for at in killed) else calm).append((end_us - begin_us) / 1e6)
        usual = percentile(calm, 0.95)
        extra = max(struck, default=0.0) - usual
        print(f"orchestrator: {kills} killed; {len(calm)} runs without a kill, median {percentile(calm, 0.5):.2f} s, 95 % within {usual:.2f} s")
        print(f"        {len(struck)} runs across a kill, median {percentile(struck, 0.5):.2f} s, longest {max(struck):.2f} s")
        print(f"        {'kept' if extra <= 1 else 'MISSED'}: at most 1 s more; it was {extra:.2f} s more than 95 % of the others took", flush=True)


async def main(what: Sequence[str]) -> None:
    """Measure what was asked for."""
    print(f"{machine()}\n", flush=True)
    if "orchestrator" in what:
        await orchestrator(kills=5)
    if "worker" in what:
        await worker(kills=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["worker", "orchestrator"])
    given = parser.parse_args()
    asyncio.run(main(given.what))
