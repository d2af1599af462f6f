"""The crew of a chaos run: the embedded servers, two orchestrators, a projector and workers, each started again at once when it dies.

Everything lives in a home of its own. Settings are those of the product but for the waits that a test has no patience for.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TextIO

from crewlog.events.clock import Clock
from crewlog.events.config import Config
from crewlog.events.jetstream import ensure_work_consumers
from crewlog.orchestrator.chaos_agent import KIND, PRICES, SINK
from crewlog.orchestrator.chaos_strikes import Part, Strike, Victim
from crewlog.orchestrator.home import Home, ProcessState, State
from crewlog.orchestrator.servers import Servers
from crewlog.orchestrator.supervised import Program, Supervised
from crewlog.schemas.errors import ConfigError

READY_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 15.0
RESTART_LONGEST_S: Final = 0.2
SETTLE_GRACE_S: Final = 5.0
ACK_WAIT_S: Final = 2.0
IMPATIENT: Final[Mapping[str, str]] = {
    "CREWLOG_SWEEP_INTERVAL_S": "0.5",
    "CREWLOG_DISPATCH_LEASE_S": "2",
    "CREWLOG_ACK_WAIT_S": f"{ACK_WAIT_S:g}",
    "CREWLOG_SETTLE_GRACE_S": f"{SETTLE_GRACE_S:g}",
    "CREWLOG_WORKER_GRACE_S": "3",
    "CREWLOG_SHUTDOWN_GRACE_S": "5",
}
"""Waits that are long in production, because they only matter when something has died."""
BUDGETS: Final = "run=1, tenant/day=100000"
"""Every run is charged to two budgets, so that there is a ledger to balance."""


class ChaosCrew:
    """Servers and processes of one chaos run.

    Args:
        config: its home is where everything lives.
        sink: socket of the receiving side.
        workers: how many agents.
        orchestrators: how many orchestrators.
        settings: what differs from the product's own settings, as environment.
    """

    def __init__(self, config: Config, sink: Path, clock: Clock, *, workers: int, orchestrators: int, settings: Mapping[str, str] = IMPATIENT) -> None:
        ack_wait_s = float(settings.get("CREWLOG_ACK_WAIT_S", config.ack_wait_s))
        self._config, self._sink, self._clock = config.model_copy(update={"ack_wait_s": ack_wait_s}), sink, clock
        self._settings = settings
        self._home = Home(config.home)
        self._servers = Servers(self._config, self._home, say=lambda line: self._write_line("servers", line))
        self._counts: Mapping[Part, int] = {"agents": workers, "orchestrators": orchestrators, "projector": 1}
        self._children: dict[str, tuple[Part, Supervised]] = {}
        self._logs: dict[str, TextIO] = {}
        self._closing = ExitStack()
        self._began = clock.monotonic()

    async def start(self) -> None:
        """Start everything and wait until it is ready.

        Raises:
            ConfigError: a server or a process does not come up.
        """
        self._home.prepare()
        self._closing.enter_context(self._home.locked())
        await self._servers.start()
        await ensure_work_consumers(self._servers.bus, KIND, provision=self._config.provision)
        for part, count in self._counts.items():
            for n in range(1, count + 1):
                self._add(part, f"{part.removesuffix('s')}-{n}")
        self._write_state("running")
        async with asyncio.timeout(READY_WITHIN_S):
            ready = await asyncio.gather(*(child.settled() for _, child in self._children.values()))
        if not all(ready):
            raise ConfigError("a process of the chaos crew did not become ready", hint=f"see {self._home.logs}")

    async def stop(self) -> None:
        """Stop everything in good order. Safe to call at any time."""
        children = [child for _, child in self._children.values()]
        await asyncio.gather(*(child.stop(grace_s=STOP_WITHIN_S) for child in children))
        await self._servers.stop()
        if self._home.path.exists():
            self._write_state("stopped")
        self._closing.close()
        for log in self._logs.values():
            log.close()

    def victims(self) -> list[Victim]:
        """Return who may be struck now. Of Postgres, one entry is the server and the others serve one client each."""
        found = [Victim(part, name, child.pid, child.state == "ready") for name, (part, child) in self._children.items() if child.pid is not None]
        if (nats := self._servers.pid_of("nats")) is not None:
            found.append(Victim("nats", "nats-server", nats))
        if (postgres := self._servers.pid_of("postgres")) is not None:
            found.append(Victim("postgres", "postgres", postgres))
            found += [Victim("postgres", "a backend", pid) for pid in _backends(postgres)]
        return found

    def note(self, strike: Strike) -> None:
        """Write down what was done to whom, beside what the processes say."""
        for_s = f" for {strike.stopped_s:.1f} s" if strike.action == "stop" else ""
        self._write_line("strikes", f"{strike.action} {strike.victim.name} (pid {strike.victim.pid}){for_s}")

    def _add(self, part: Part, name: str) -> None:
        module = "crewlog.orchestrator.chaos_agent" if part == "agents" else "crewlog.orchestrator"
        command = () if part == "agents" else (part.removesuffix("s"),)
        login = KIND if part == "agents" else part.removesuffix("s")
        env = {key: value for key, value in os.environ.items() if not key.startswith("CREWLOG_")}
        env |= {
            **self._servers.env_for(login),
            **self._settings,
            "CREWLOG_HOME": str(self._home.path),
            "CREWLOG_BUDGETS": BUDGETS,
            "CREWLOG_PRICES": json.dumps(PRICES),
            SINK: str(self._sink),
        }
        program = Program(name, login, (sys.executable, "-P", "-m", module, *command), env)
        child = Supervised(program, self._write_line, clock=self._clock, restart_longest_s=RESTART_LONGEST_S)
        self._children[name] = part, child
        child.start()

    def _write_state(self, phase: str) -> None:
        processes = tuple(ProcessState(name, child.program.kind, child.state, child.pid, child.restarts) for name, (_, child) in self._children.items())
        ports = self._servers.database_port, self._servers.nats_port
        self._home.write_state(State(os.getpid(), "running" if phase == "running" else "stopped", self._clock.now_us(), *ports, processes))

    def _write_line(self, name: str, line: str) -> None:
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._home.open_log(name).open("a", encoding="utf-8", buffering=1)
        log.write(f"{self._clock.monotonic() - self._began:8.3f} {line}\n")


def _backends(postmaster: int) -> Iterator[int]:
    """Yield the processes in which Postgres serves our logins."""
    try:
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    except OSError:
        return
    for pid in map(int, children):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if command.startswith(b"postgres: crewlog_"):
            yield pid
