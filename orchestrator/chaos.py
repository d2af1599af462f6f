"""`crewlog chaos`: a real crew under load whose processes and servers are killed and stopped at random, and then held to its promises.

1. A crew in a home of its own: embedded servers, two orchestrators, a projector, workers (`chaos_crew`).
2. Runs in flight whose effects a sink counts (`chaos_load`, `chaos_sink`), and strikes drawn from a seed (`chaos_strikes`).
3. The strikes end, everything that was accepted comes to its end, and the books are compared (`chaos_audit`).

A run that breaks a promise keeps its home, which holds the log, the views and what every process said.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.config import Config, load
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.chaos_audit import Found, audit
from crewlog.orchestrator.chaos_crew import ChaosCrew
from crewlog.orchestrator.chaos_load import Load
from crewlog.orchestrator.chaos_sink import Sink
from crewlog.orchestrator.chaos_strikes import PARTS, Action, Part, Striker
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.endpoints import with_login
from crewlog.orchestrator.home import Home
from crewlog.schemas.errors import ConfigError

DRAIN_S: Final = 120.0
"""How long no run may end, once the strikes are over, before the rest is taken for lost, in seconds."""
PROGRESS_S: Final = 5.0
GONE_WITHIN_S: Final = 5.0
SEEDS: Final = 1_000_000
_SUBREAPER: Final = 36
"""prctl(2) PR_SET_CHILD_SUBREAPER: orphans become our children, so that none is overlooked."""


class Options(NamedTuple):
    """What a chaos run does. It ends with `kills` SIGKILLs or after `seconds`, whichever is first."""

    seed: int
    kills: int = 60
    seconds: float = 60.0
    in_flight: int = 12
    parts: Collection[Part] = PARTS
    workers: int = 3
    orchestrators: int = 2
    pause_s: tuple[float, float] = (0.0, 0.5)
    """Shortest and longest time between a sign of work and the strike that follows, in seconds."""


class ChaosReport(msgspec.Struct):
    """What happened, and what it proves. `violations` is empty when every promise was kept."""

    seed: int
    seconds: float
    """From the first strike to the end of the last run."""
    kills: dict[str, int]
    stops: dict[str, int]
    accepted: int
    ended: dict[str, int]
    """Type of the end -> runs."""
    effects: int
    repeated_arrivals: int
    """Effects that arrived again and were recognised by their key: how often a kill hit the window between effect and outcome."""
    resolved: dict[str, int]
    """What a person said, who was asked whether something happened that cannot be repeated -> times."""
    audit: Found
    left_over: list[str]
    home: str | None
    """Where everything lies; None when it was removed."""

    @property
    def violations(self) -> list[str]:
        """Return every promise that was broken."""
        return [*self.audit.violations, *(f"left running: {process}" for process in self.left_over)]


async def run_chaos(options: Options, clock: Clock, *, home: Path | None, keep: bool, say: Callable[[str], None]) -> ChaosReport:
    """Make a crew, strike it, and audit what is left.

    Args:
        home: an empty or missing folder for everything; None for one in the system's folder for temporary files.
        keep: leave the home there in any case; it stays when a promise was broken or the run failed, and goes when somebody interrupts it.
        say: told about the progress.

    Raises:
        ConfigError: the home is not empty, the system is not Linux, or the crew does not start.
    """
    if sys.platform != "linux":
        raise ConfigError("chaos needs Linux: it strikes processes through pidfd", hint="run it in a container")
    place = _fresh(home)
    config = load(home=place).model_copy(update={"database_url": None, "nats_url": None})
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)
    before = _children()
    run = ChaosRun(options, config, clock, say)
    try:
        report = await run.carry_out()
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and not keep:
            await _left_over(before)
            shutil.rmtree(place, ignore_errors=True)
        else:
            say(f"the home is kept: {place}")
        raise
    report.left_over = await _left_over(before)
    if report.violations or keep:
        report.home = str(place)
    else:
        shutil.rmtree(place, ignore_errors=True)
    return report


class ChaosRun:
    """One run, from the start of the crew to its end."""

    def __init__(self, options: Options, config: Config, clock: Clock, say: Callable[[str], None]) -> None:
        self._options, self._config, self._clock, self._say = options, config, clock, say
        # one source each, so that the strikes of a seed do not depend on how quickly the load gets on
        self._sink = Sink(config.home / "sink", random.Random(f"{options.seed}/sink"))  # noqa: S311  (nothing secret)
        self._crew = ChaosCrew(config, self._sink.path, clock, workers=options.workers, orchestrators=options.orchestrators)
        rng = random.Random(f"{options.seed}/strikes")  # noqa: S311
        self._striker = Striker(rng, self._crew.victims, options.parts, pause_s=options.pause_s, work=self._sink.next_arrival, on_strike=self._crew.note)
        self._load: Load | None = None
        self._began = clock.monotonic()

    async def carry_out(self) -> ChaosReport:
        """Run all phases and stop the crew."""
        options = self._options
        async with AsyncExitStack() as closing:
            closing.enter_context(_log_to(self._config.home / "logs" / "chaos.log"))
            await self._sink.start()
            closing.push_async_callback(self._sink.stop)
            closing.push_async_callback(self._crew.stop)
            self._say(f"seed {options.seed}: starting two servers, {options.orchestrators} orchestrators, a projector and {options.workers} workers")
            await self._crew.start()
            config = with_login(self._config, "operator")
            assert config.nats_url is not None
            client = await closing.enter_async_context(Client.connect(config, clock=self._clock))
            bus = await NatsBus.connect(config.nats_url.get_secret_value(), name="chaos")
            closing.push_async_callback(bus.close)
            store = await client.store()
            rng = random.Random(f"{options.seed}/load")  # noqa: S311
            self._load = load = Load(client, bus, store, rng, in_flight=options.in_flight, arrived=self._sink.arrivals)
            await self._strike(load)
            seconds = self._clock.monotonic() - self._began
            self._say(f"all ends are told after {seconds:.0f} s; comparing log, ledger, views, queues and the receiver's book")
            found = await audit(store, bus, client.queries(), self._clock, Home(self._config.home), load.accepted, self._sink)
        return self._report(load, found, seconds)

    async def _strike(self, load: Load) -> None:
        """Strike under load, then wait until everything that was begun has ended."""
        self._began = self._clock.monotonic()
        loading = asyncio.create_task(load.run())
        telling = asyncio.create_task(self._tell())
        try:
            striking = asyncio.create_task(self._striker.run(self._options.kills))
            await asyncio.wait({striking, loading}, timeout=self._options.seconds, return_when=asyncio.FIRST_COMPLETED)
            striking.cancel()
            self._striker.release()
            load.stop_submitting()
            await asyncio.gather(striking, return_exceptions=True)
            self._say(f"{self._progress()}; no more strikes, waiting for every run to end")
            await self._drain(load, loading)
        finally:
            self._striker.release()
            telling.cancel()
            loading.cancel()
            await asyncio.gather(telling, loading, return_exceptions=True)

    async def _drain(self, load: Load, loading: asyncio.Task[None]) -> None:
        ended = -1
        while not loading.done() and len(load.ended) > ended:  # whatever has not moved for so long is left to the audit
            ended = len(load.ended)
            await asyncio.wait({loading}, timeout=DRAIN_S)
        if loading.done():
            loading.result()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            self._say(self._progress())

    def _progress(self) -> str:
        kills, stops, load = self._striker.count("kill"), self._striker.count("stop"), self._load
        parts = ", ".join(f"{part} {count}" for part, count in kills.most_common())
        begun, ended = (len(load.accepted), len(load.ended)) if load is not None else (0, 0)
        head = f"{self._clock.monotonic() - self._began:4.0f} s  {kills.total()} killed ({parts or 'none'}), {stops.total()} stopped"
        return f"{head}; {ended} of {begun} runs ended, {len(self._sink.effects)} effects, {self._sink.repeated} arrived again"

    def _report(self, load: Load, found: Found, seconds: float) -> ChaosReport:
        ends: dict[str, int] = {}
        for end in load.ended.values():
            ends[end] = ends.get(end, 0) + 1
        return ChaosReport(
            seed=self._options.seed,
            seconds=round(seconds, 1),
            kills=self._counted("kill"),
            stops=self._counted("stop"),
            accepted=len(load.accepted),
            ended=ends,
            effects=len(self._sink.effects),
            repeated_arrivals=self._sink.repeated,
            resolved={str(answer): count for answer, count in sorted(load.resolved.items())},
            audit=found,
            left_over=[],
            home=None,
        )

    def _counted(self, action: Action) -> dict[str, int]:
        return {str(part): count for part, count in sorted(self._striker.count(action).items())}


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what our own connections log into a file: that servers go away is no news here."""
    path.parent.mkdir(exist_ok=True)
    handler, logger = logging.FileHandler(path), logging.getLogger("crewlog")
    logger.addHandler(handler)
    logger.propagate, before = False, logger.propagate
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
        handler.close()


def _fresh(home: Path | None) -> Path:
    if home is None:
        made = Path(tempfile.mkdtemp(prefix="crewlog-chaos-"))
        if os.geteuid() == 0:
            made.chmod(0o755)  # the embedded Postgres runs as another user, who must be able to come in
        return made
    if home.exists() and any(home.iterdir()):
        raise ConfigError(f"{home} is not empty", hint="chaos takes a folder of its own; leave --home out for a temporary one")
    home.mkdir(parents=True, exist_ok=True)
    return home


def _children() -> set[int]:
    threads = Path(f"/proc/{os.getpid()}/task")
    while True:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile, and another one has its children by now
            return {int(pid) for thread in threads.iterdir() for pid in (thread / "children").read_text().split()}


async def _left_over(before: Collection[int]) -> list[str]:
    """End what still runs below us and was not there before; returns what that was. Whatever lost its parent is our child by now."""
    for _ in range(round(GONE_WITHIN_S / 0.05)):
        if not (left := [pid for pid in _children() - set(before) if not _is_gone(pid)]):
            return []
        await asyncio.sleep(0.05)
    found = [f"{pid} {_command(pid)}" for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def _is_gone(pid: int) -> bool:
    """Say whether a child has ended; one that only waits to be collected is collected."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
