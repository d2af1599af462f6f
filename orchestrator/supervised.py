"""One child process under supervision: started, watched, restarted with back-off, stopped for good.

A child runs in a process group of its own, so that a Ctrl-C meant for the supervisor does not reach it, and dies with the
supervisor (PDEATHSIG), so that nothing is left behind even after `kill -9`. It says that it is ready through the pipe named in
`CREWLOG_READY_FD`; whoever waits is woken by that, nothing polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Literal, NamedTuple

from crewlog.events.child_launch import launch_command
from crewlog.events.clock import Clock
from crewlog.events.readiness import READY_FD
from crewlog.schemas.retry import doubled_s

EXIT_MISCONFIGURED: Final = 2
"""A child that ends with this code found a setting it cannot work with: starting it again would end the same way."""
RESTART_FIRST_S: Final = 0.2
RESTART_LONGEST_S: Final = 5.0
HEALTHY_AFTER_S: Final = 30.0
"""A child that lived this long starts over with the shortest wait."""
_CHUNK_BYTES: Final = 65_536

State = Literal["starting", "ready", "restarting", "stopping", "stopped", "failed", "left"]
"""`left`: it ended by itself in good order, as it was drained, and is not started again."""


class Program(NamedTuple):
    """What to run. `env` is the whole environment of the child: it gets its own role's credentials and no others."""

    name: str
    kind: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    may_leave: bool = False
    """When it ends in good order without being asked to by its supervisor, somebody else has asked: it stays away."""


class Supervised:
    """Keeps one program running until it is stopped.

    Args:
        program: what to run.
        output: called with each line the child writes, without its end.
        clock: measures how long the child lived.
        restart_longest_s: the wait before it is started again doubles with each early end, up to this, in seconds.
    """

    def __init__(self, program: Program, output: Callable[[str, str], None], *, clock: Clock, restart_longest_s: float = RESTART_LONGEST_S) -> None:
        self.program = program
        self.state: State = "starting"
        self.restarts = 0
        self.pid: int | None = None
        self.exit_code: int | None = None
        self._output = output
        self._clock = clock
        self._restart_longest_s = restart_longest_s
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep the program running."""
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.program.name}")

    async def settled(self) -> bool:
        """Wait until the child is ready, or will never be; returns whether it is ready."""
        await self._settled.wait()
        return self.state == "ready"

    async def stop(self, *, grace_s: float) -> None:
        """End the child: SIGTERM, after `grace_s` seconds SIGKILL to its whole group. Whoever asks for it too only waits with the first one."""
        if not self._stop.is_set():  # a second SIGTERM would end at once what finishes its work
            self._stop.set()
            if self.state in ("starting", "ready", "restarting"):
                self.state = "stopping"
            self._signal(signal.SIGTERM)
        if self._keeper is None:
            return
        done, _ = await asyncio.wait({self._keeper}, timeout=grace_s)
        if not done:
            self._output(self.program.name, f"did not stop within {grace_s:g} s, killed")
            self.kill()
            await asyncio.wait({self._keeper})
        self._keeper.result()

    def kill(self) -> None:
        """Kill the child and everything in its group, now."""
        self._stop.set()
        self._signal(signal.SIGKILL, group=True)

    def _signal(self, number: int, *, group: bool = False) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    async def _keep(self) -> None:
        failures = 0
        try:
            while not self._stop.is_set():
                started = self._clock.monotonic()
                how = await self._run_and_tell()
                if self._stop.is_set():
                    break
                if self.exit_code == EXIT_MISCONFIGURED:
                    self.state = "failed"
                    return
                if self.exit_code == 0 and self.program.may_leave:
                    self.state = "left"
                    self._output(self.program.name, "has left in good order and stays away; crewlog scale brings it back")
                    return
                failures = 0 if self._clock.monotonic() - started > HEALTHY_AFTER_S else failures + 1
                wait_s = doubled_s(RESTART_FIRST_S, max(failures - 1, 0), longest_s=self._restart_longest_s)
                self.state = "restarting"
                self._output(self.program.name, f"{how}, starts again in {wait_s:g} s")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._stop.wait()
                self.restarts += 1
            self.state = "stopped"
        except OSError as error:
            self.state = "failed"
            self._output(self.program.name, f"cannot be started: {error}")
        finally:
            self._settled.set()

    async def _run_and_tell(self) -> str:
        """Run the program once and say how it ended. One that ran before and cannot be started now meets what passes, such as a machine without memory.

        Raises:
            OSError: it could not be started for the first time.
        """
        self.exit_code = None
        try:
            self.exit_code = await self._run_once()
        except OSError as error:
            if not self.restarts:
                raise
            return f"cannot be started: {error}"
        return f"ended with {_describe(self.exit_code)}"

    async def _run_once(self) -> int:
        # own pipes, not asyncio's: a grandchild that keeps the output open must not hide that the child has ended
        output_end, child_output = os.pipe()
        ready_end, child_ready = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *launch_command(self.program.argv, signal_number=signal.SIGKILL),
                env={**self.program.env, READY_FD: str(child_ready)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_output,
                pass_fds=(child_ready,),
            )
        except BaseException:
            os.close(output_end)
            os.close(ready_end)
            raise
        finally:
            os.close(child_output)
            os.close(child_ready)
        self.pid, self.state = process.pid, "starting"
        if self._stop.is_set():  # stop() came while the child was being started and had nobody to signal
            self._signal(signal.SIGTERM)
        pump = asyncio.create_task(self._pump(output_end))
        ready = asyncio.create_task(self._await_ready(ready_end))
        try:
            return await process.wait()
        finally:
            self._signal(signal.SIGKILL, group=True)
            self.pid = None
            await asyncio.wait({pump, ready}, timeout=1.0)
            for task in (pump, ready):
                task.cancel()
            await asyncio.gather(pump, ready, return_exceptions=True)

    async def _await_ready(self, fd: int) -> None:
        async with reading_pipe(fd) as reader:
            if await reader.read(1) and not self._stop.is_set():
                self.state = "ready"
                self._settled.set()

    async def _pump(self, fd: int) -> None:
        async with reading_pipe(fd) as reader:
            rest = b""
            while chunk := await reader.read(_CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._output(self.program.name, line.decode(errors="replace"))
            if rest:
                self._output(self.program.name, rest.decode(errors="replace"))


@contextlib.asynccontextmanager
async def reading_pipe(fd: int) -> AsyncIterator[asyncio.StreamReader]:
    """Read from a pipe without blocking; closes it at the end."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0))
    try:
        yield reader
    finally:
        transport.close()


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
