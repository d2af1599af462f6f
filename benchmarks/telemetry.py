"""Measure what telemetry costs: the fan-out run of fanout.py on two crews, one of which sends all its runs to a collector.

    python benchmarks/telemetry.py [--rounds 5] [--seconds 4] [--in-flight 32]

The collector is a process of its own on loopback that takes everything and decodes nothing; its CPU is not counted, as it would run
elsewhere. Both crews are up all the time and take turns, the order changes from round to round; the ratios are medians over rounds.
`settled` counts the time until the views, `events.>` and the collector have everything.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import asyncpg
from fanout import BUILT_IN, Crew, Level, load_level
from measure import machine, percentile


async def _sink(port: Connection) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _run_sink(port: Connection) -> None:
    asyncio.run(_sink(port))


class TracedCrew(Crew):
    """A crew that is settled when the collector has everything, too."""

    async def settle(self) -> None:
        await super().settle()
        connection: asyncpg.Connection = await self.database()
        last = await connection.fetchval("SELECT max(position) FROM es.events")
        while await connection.fetchval("SELECT position FROM rm.telemetry") < last:
            await asyncio.sleep(0.1)
        await connection.close()


def start(crew: Crew, home: Path) -> None:
    """Bring a crew up with the benchmark's agents and none of the built-in ones."""
    home.mkdir()
    crew.start("--agents", ",".join(f"{kind}=0" for kind in BUILT_IN))
    crew.start_agents()


async def compare(plain: Crew, traced: Crew, levels: list[int], rounds: int, seconds: float) -> None:
    """Load both in turn and print the table."""
    for crew in (plain, traced):
        await load_level(crew.run, 16, 2, crew.pids, crew.settle)
    taken: dict[int, list[tuple[Level, Level]]] = {n: [] for n in levels}
    for number in range(rounds):
        for n in levels:
            found = {}
            for crew in (plain, traced) if number % 2 == 0 else (traced, plain):
                found[crew] = await load_level(crew.run, n, seconds, crew.pids, crew.settle)
            taken[n].append((found[plain], found[traced]))
    print(f"{'in flight':>9} {'':>8} {'runs/s':>8} {'settled':>8} {'CPU-s/1000':>11} {'p50 ms':>8}")
    for n in levels:
        for name, levels_of in zip(("off", "on"), zip(*taken[n], strict=True), strict=True):
            print(
                f"{n:>9} {name:>8} {statistics.median(x.rate for x in levels_of):>8.0f} {statistics.median(settled(x) for x in levels_of):>8.0f}"
                f" {statistics.median(x.cpu_per_1000 for x in levels_of):>11.2f} {statistics.median(percentile(x.latencies_ms, 0.5) for x in levels_of):>8.1f}"
            )
        rate, whole, cpu = (statistics.median(of(on) / of(off) for off, on in taken[n]) for of in (lambda x: x.rate, settled, lambda x: x.cpu_per_1000))
        print(f"{n:>9} {'ratio':>8} {rate:>8.3f} {whole:>8.3f} {cpu:>11.3f}", flush=True)


def settled(level: Level) -> float:
    """Return runs per second with the time counted until everything has caught up."""
    return level.runs / (level.seconds + level.catch_up_s)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--in-flight", default="32")
    given = parser.parse_args()
    print(machine(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    ours, theirs = multiprocessing.Pipe()
    sink = multiprocessing.get_context("spawn").Process(target=_run_sink, args=(theirs,), daemon=True)
    sink.start()
    crews: list[Crew] = []
    try:
        os.environ.pop("CREWLOG_OTLP_ENDPOINT", None)
        for home, make, endpoint in ((folder / "off", Crew, ""), (folder / "on", TracedCrew, f"http://127.0.0.1:{ours.recv()}")):
            if endpoint:
                os.environ["CREWLOG_OTLP_ENDPOINT"] = endpoint
            crews.append(make(home))
            start(crews[-1], home)
            await crews[-1].connect()
        await compare(*crews, [int(n) for n in given.in_flight.split(",")], given.rounds, given.seconds)
    finally:
        for crew in crews:
            crew.stop()
        sink.terminate()
        sink.join()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
