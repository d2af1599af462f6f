"""`crewlog up`: the servers and all processes of the crew under one roof.

Order of start: Postgres and NATS together, migrations and streams, then all processes at once. Order of stop: agents, orchestrator,
projector, NATS, Postgres, so that nothing loses the server it still writes to. Every process gets its own role's credentials and no
others. The supervisor does no work of its own: whatever dies is started again, and the log holds everything that matters.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, Literal, TextIO

from crewlog.agents.models import PLANNERS_TASKS, check_models
from crewlog.events.bus import Bus, Message
from crewlog.events.clock import Clock
from crewlog.events.config import SERVER_KEY, Config
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.events.kek import FILE as KEK_FILE
from crewlog.events.kek import make_kek
from crewlog.orchestrator.home import Home, ProcessState, State
from crewlog.orchestrator.servers import Servers
from crewlog.orchestrator.supervised import Program, Supervised
from crewlog.schemas.errors import ConfigError, ContractError, OrchestrationError
from crewlog.schemas.ids import TOKEN
from crewlog.schemas.subjects import SHADOW_LANE

COPIES_MAX: Final = 64
READY_WITHIN_S: Final = 60.0
STOP_MARGIN_S: Final = 2.0
"""Added to the grace a process gives its own work before it is killed."""
_ALIGN: Final = 14
_SECRETS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"), frozenset(BUILT_IN_KINDS)),
    "BRAVE_API_KEY": frozenset({"research"}),
    "TAVILY_API_KEY": frozenset({"research"}),
    "CREWLOG_MCP": frozenset(BUILT_IN_KINDS),
    "CREWLOG_SMTP_PASSWORD": frozenset({"communicate"}),
    "CREWLOG_PERSON_KEK": frozenset((*BUILT_IN_KINDS, "orchestrator")),
    **dict.fromkeys(("CREWLOG_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"), frozenset({"projector"})),
}
"""Environment variables that only some kinds of process get."""


def may_have(kind: str, variable: str) -> bool:
    """Say whether a process may see an environment variable: keys are for agents only."""
    allowed = frozenset(BUILT_IN_KINDS) if SERVER_KEY.fullmatch(variable) else _SECRETS.get(variable)
    return allowed is None or kind in allowed


def parse_counts(parts: Iterable[str]) -> dict[str, int]:
    """Parse `research=2,code=1`, in one or several parts; `research.shadow=1` are workers that take the work of shadows and no other.

    Raises:
        ContractError: naming what is wrong.
    """
    counts = {}
    for part in filter(None, ",".join(parts).split(",")):
        group, _, number = part.partition("=")
        kind = group.removesuffix(f".{SHADOW_LANE}")
        if not TOKEN.fullmatch(kind) or not number.isdecimal() or int(number) > COPIES_MAX:
            raise ContractError(f"{part!r} is not KIND=NUMBER or KIND.{SHADOW_LANE}=NUMBER with a number from 0 to {COPIES_MAX}")
        if kind not in BUILT_IN_KINDS:
            raise ContractError(
                f"{kind!r} is not a built-in kind ({', '.join(BUILT_IN_KINDS)}); start copies of your own kind with `crewlog agent module:ATTR`"
            )
        counts[group] = int(number)
    return counts


class Supervisor:
    """Runs the crew of one home until it is asked to stop.

    Args:
        config: the settings; `home`, `database_url` and `nats_url` decide which servers are embedded.
        agents: copies per built-in kind, or per group of workers for shadows (`research.shadow`); kinds not named here get one, such groups none.
        clock: time.
        console: where merged log lines go.
        on_phase: called with one line per phase of start and stop, for people.
    """

    def __init__(self, config: Config, agents: Mapping[str, int], *, clock: Clock, console: TextIO, on_phase: Callable[[str], None]) -> None:
        self._config = config
        self._copies = dict.fromkeys(BUILT_IN_KINDS, 1) | dict(agents)
        self._clock = clock
        self._console = console
        self._on_phase = on_phase
        self._home = Home(config.home)
        self._children: dict[str, Supervised] = {}
        self._logs: dict[str, TextIO] = {}
        self._servers: Servers | None = None
        self._phase: Literal["starting", "running", "stopping", "stopped"] = "starting"
        self._started_us = clock.now_us()
        self._stop = asyncio.Event()
        self._scaling = asyncio.Lock()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, say so, and keep it running until `request_stop`.

        Raises:
            AlreadyRunning: another supervisor has this home.
            ConfigError: the home, a server or a process cannot be started, or a kind has no usable model.
        """
        kinds = [*dict.fromkeys(_kind(group) for group, copies in self._copies.items() if copies)]
        check_models([*kinds, *(PLANNERS_TASKS if "planner" in kinds else ())], self._config)
        self._home.prepare()
        with self._home.locked():
            if self._config.person_keys == "on" and self._config.person_kek is None and make_kek(self._home.path):
                self._on_phase(f"made {self._home.path / KEK_FILE}, the key to all persons' keys: keep a copy of it apart from those of the database")
            try:
                await self._unless_stopped(self._start())
                if not self._stop.is_set():
                    self._set_phase("running")
                    on_ready()
                await self._stop.wait()
            finally:
                self._set_phase("stopping")
                await self._shut_down()
                self._set_phase("stopped")
                self._close_logs()

    def request_stop(self) -> None:
        """Stop in good order; asked for a second time, kill everything at once."""
        if self._stop.is_set():
            for child in self._children.values():
                child.kill()
            if self._servers is not None:
                self._servers.kill()
        self._stop.set()

    async def scale(self, copies: Mapping[str, int]) -> dict[str, int]:
        """Start or drain agents until each named kind has as many copies; returns the copies of all kinds.

        A copy that goes stops fetching, finishes what it works on within the grace period and hands the rest back. Copies that were drained count
        as missing from now on: until then nobody replaces them, since whoever drained them wants them away.

        Raises:
            ConfigError: a copy did not become ready, or the crew is being stopped.
        """
        async with self._scaling:
            self._refuse_while_stopping()
            self._copies.update(copies)
            surplus = [child for child in self._children.values() if _number(child.program.name) > self._copies.get(_group(child.program), 1)]
            await asyncio.gather(*(child.stop(grace_s=self._grace_s) for child in surplus))
            self._refuse_while_stopping()
            drained = [child for child in self._children.values() if child.state == "left" and _group(child.program) in copies]
            for child in (*surplus, *drained):
                self._children.pop(child.program.name, None)
            fresh = self._start_missing_agents()
            await self._until_ready(fresh)
            self._write_state()
            return dict(self._copies)

    def _refuse_while_stopping(self) -> None:
        if self._stop.is_set():  # what was started now, nobody would stop before its servers
            raise ConfigError(
                "this crew is being stopped, its copies cannot be changed", hint="start it with as many as are wanted: crewlog up --agents KIND=NUMBER"
            )

    def state(self) -> State:
        """Describe what runs now."""
        processes = tuple(ProcessState(c.program.name, c.program.kind, c.state, c.pid, c.restarts) for c in self._children.values())
        servers = self._servers
        return State(
            pid=os.getpid(),
            phase=self._phase,
            started_us=self._started_us,
            database_port=servers.database_port if servers else None,
            nats_port=servers.nats_port if servers else None,
            processes=processes,
        )

    @property
    def _grace_s(self) -> float:
        return self._config.shutdown_grace_s + STOP_MARGIN_S

    async def _unless_stopped(self, start: Any) -> None:
        starting, stopping = asyncio.ensure_future(start), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
        finally:  # also when we are cancelled: nothing may go on being started while everything is stopped
            stopping.cancel()
            starting.cancel()
            await asyncio.wait({starting, stopping})

    async def _start(self) -> None:
        self._servers = Servers(self._config, self._home, say=self._on_phase)
        await self._servers.start()
        await self._listen(self._servers.bus)
        self._on_phase(f"starting the orchestrator, the projector and {sum(self._copies.values())} agents")
        for kind in ("orchestrator", "projector"):
            self._add(kind, kind, (kind,))
        self._start_missing_agents()
        self._set_phase("starting")
        await self._until_ready(list(self._children.values()))

    def _start_missing_agents(self) -> list[Supervised]:
        names = [(group, _name(group, n)) for group, copies in self._copies.items() for n in range(1, copies + 1)]
        return [self._add(name, _kind(group), _command(group)) for group, name in names if name not in self._children]

    def _add(self, name: str, kind: str, command: tuple[str, ...]) -> Supervised:
        assert self._servers is not None
        env = {key: value for key, value in os.environ.items() if may_have(kind, key)} | self._servers.env_for(kind)
        argv = (sys.executable, "-P", "-m", "crewlog.orchestrator", *command)
        env |= {"CREWLOG_HOME": str(self._home.path), "CREWLOG_WORKER": name}
        child = Supervised(Program(name, kind, argv, env, may_leave=kind in BUILT_IN_KINDS), self._write_line, clock=self._clock)
        self._children[name] = child
        child.start()
        return child

    async def _until_ready(self, children: list[Supervised]) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                ready = await asyncio.gather(*(child.settled() for child in children))
        except TimeoutError:
            ready = [child.state == "ready" for child in children]
        late = [child.program.name for child, is_ready in zip(children, ready, strict=True) if not is_ready]
        if late and not self._stop.is_set():
            raise ConfigError(f"{', '.join(late)} did not become ready", hint=f"see {self._home.logs}/{late[0]}.log")

    async def _listen(self, bus: Bus) -> None:
        async def answer(message: Message) -> None:
            try:
                body = {"ok": True, **await self._command(message)}
            except OrchestrationError as error:
                body = {"ok": False, "error": {"code": error.code, "message": str(error)}}
            except (TypeError, ValueError) as error:
                body = {"ok": False, "error": {"code": "contract", "message": f"not JSON, or no object with a number for each kind: {error}"}}
            if message.reply:
                await bus.publish(message.reply, json.dumps(body).encode())
                await bus.flush()

        for verb in ("scale", "status"):
            await bus.subscribe(f"supervisor.{verb}", answer)

    async def _command(self, message: Message) -> dict[str, Any]:
        match message.subject.removeprefix("supervisor."):
            case "scale":
                copies = parse_counts(f"{kind}={number}" for kind, number in dict(json.loads(message.data)).items())
                return {"agents": await self.scale(copies)}
            case _:
                state = self.state()
                return {
                    "phase": state.phase,
                    "processes": [{"name": p.name, "kind": p.kind, "state": p.state, "pid": p.pid, "restarts": p.restarts} for p in state.processes],
                }

    async def _shut_down(self) -> None:
        agents = [c for c in self._children.values() if c.program.kind in BUILT_IN_KINDS]
        others = [self._children[name] for name in ("orchestrator", "projector") if name in self._children]
        async with AsyncExitStack() as last:
            if self._servers is not None:
                last.push_async_callback(self._servers.stop)
            if self._children:
                self._on_phase("stopping: agents first, servers last")
            await asyncio.gather(*(child.stop(grace_s=self._grace_s) for child in agents))
            for child in others:
                await child.stop(grace_s=self._grace_s)

    def _set_phase(self, phase: Literal["starting", "running", "stopping", "stopped"]) -> None:
        self._phase = phase
        self._write_state()

    def _write_state(self) -> None:
        try:
            self._home.write_state(self.state())
        except OSError as error:  # a full disk must not keep the crew from being stopped in good order
            self._on_phase(f"state.json is not up to date: {error}")

    def _close_logs(self) -> None:
        for log in self._logs.values():
            with suppress(OSError):  # what no disk took is lost now
                log.close()

    def _write_line(self, name: str, line: str) -> None:
        # a disk that is full, or a console that is gone, must not keep the other from getting it, nor the child from writing
        with suppress(OSError):
            log = self._logs.get(name)
            if log is None:
                log = self._logs[name] = self._home.open_log(name).open("a", encoding="utf-8", buffering=1)
            log.write(f"{line}\n")
        with suppress(OSError):
            self._console.write(f"{name:<{_ALIGN}} {line}\n")
            self._console.flush()


def _kind(group: str) -> str:
    return group.partition(".")[0]


def _command(group: str) -> tuple[str, ...]:
    return ("agent", _kind(group), *(f"--{lane}" for lane in group.split(".")[1:]))


def _group(program: Program) -> str:
    return program.name.rpartition("-")[0] or program.name


def _name(group: str, number: int) -> str:
    return group if number == 1 else f"{group}-{number}"


def _number(name: str) -> int:
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else 1
