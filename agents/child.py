"""Run one untrusted command as a limited child process.

Every child gets: a wall clock, an output cap, limits on memory, CPU, files and processes, a clean environment, its own session, a
watchdog over the memory of its whole tree and over what it stores, and an end that reaches every descendant. A child of root runs as a user of its own.
How much it sees of the machine is decided by its `Isolation` (see `sandbox`). The work is done by `child_launcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from crewlog.events.child_launch import spawn
from crewlog.schemas.errors import OrchestrationError

Killed = Literal["timeout", "memory", "output", "disk"]

MIB: Final = 1024 * 1024
LAUNCHER: Final = Path(__file__).with_name("child_launcher.py")
SUPERVISOR_GRACE_S: Final = 10.0
"""How long after its own deadline a launcher that says nothing is given before it is killed."""


class SandboxError(OrchestrationError):
    """The child could not be started as it was asked for; nothing ran."""

    code = "sandbox"


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What one child may use. Sizes are in bytes, times in seconds."""

    wall_s: float = 60.0
    cpu_s: int = 60
    """Of each process."""
    address_bytes_max: int = 2048 * MIB
    """Address space of each process."""
    resident_bytes_max: int = 1024 * MIB
    """Memory of all processes of the child together; looked at some twenty times a second."""
    file_bytes_max: int = 64 * MIB
    """Of each file."""
    folder_bytes_max: int = 512 * MIB
    """Of what it adds to its folder, and of files it holds open although they have no name; looked at as its memory is."""
    folder_files_max: int = 20_000
    scratch_bytes_max: int = 64 * MIB
    """Of the private /tmp, where there is one."""
    processes_max: int = 64
    files_open_max: int = 256
    output_bytes_max: int = MIB
    """Of stdout and of stderr; a child that writes more is stopped."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How far a child is kept away from the machine."""

    namespaces: bool
    """Own file system, network and processes, made by the launcher."""
    wrapper: tuple[str, ...] = ()
    """A program to run the command under instead, with its arguments; `{folder}` in them stands for what it may write to."""


LIMITS_ONLY: Final = Isolation(namespaces=False)
NAMESPACES: Final = Isolation(namespaces=True)


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How the child ended. `returncode` is negative for the signal that ended it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool
    killed_reason: Killed | None
    used: str = ""
    """What it had stored when it was killed for that, and how much it may."""

    @property
    def ok(self) -> bool:
        """True when the command ended by itself with status 0."""
        return self.returncode == 0 and self.killed_reason is None


async def run_child(
    argv: Sequence[str],
    *,
    cwd: Path,
    stdin: bytes = b"",
    limits: ChildLimits,
    env: Mapping[str, str],
    isolation: Isolation = LIMITS_ONLY,
    readable: Sequence[Path] = (),
    writable: Path | None = None,
) -> ChildResult:
    """Run a command to its end, or to that of its limits. Nothing of it is alive when this returns, also when it is cancelled.

    Args:
        argv: the program and its arguments; no shell.
        cwd: where the command starts.
        stdin: given to the command, then end of file.
        limits: what it may use.
        env: its whole environment.
        isolation: what it sees of the machine.
        readable: further paths it may read when it has a file system of its own.
        writable: the one folder it may write to, `cwd` or above; None for `cwd`. Its user becomes the owner when we are root.

    Raises:
        SandboxError: the command could not be started within its limits.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    spec = _spec(argv, cwd=cwd, limits=limits, env=env, isolation=isolation, readable=readable, writable=writable or cwd) | {"status": write_end}
    try:
        try:
            launcher = await spawn(
                *(sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(spec)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env={},
                pass_fds=(write_end,),
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        return await _attend(launcher, read_end, stdin, limits)
    finally:
        os.close(read_end)


def _spec(
    argv: Sequence[str], *, cwd: Path, limits: ChildLimits, env: Mapping[str, str], isolation: Isolation, readable: Sequence[Path], writable: Path
) -> dict[str, Any]:
    return {
        "argv": [*(part.replace("{folder}", str(writable)) for part in isolation.wrapper), *argv],
        "cwd": str(cwd),
        "env": dict(env),
        "namespaces": isolation.namespaces,
        "is_wrapped": bool(isolation.wrapper),
        "readable": [str(path) for path in readable],
        "writable": str(writable),
        "wall_s": limits.wall_s,
        "resident_bytes_max": limits.resident_bytes_max,
        "scratch_bytes_max": limits.scratch_bytes_max,
        "folder_bytes_max": limits.folder_bytes_max,
        "folder_files_max": limits.folder_files_max,
        "limits": {
            "AS": limits.address_bytes_max,
            "CPU": limits.cpu_s,
            "FSIZE": limits.file_bytes_max,
            "NPROC": limits.processes_max,
            "NOFILE": limits.files_open_max,
            "CORE": 0,
        },
        "parent": os.getpid(),
    }


class _Output:
    """One stream of the child, up to its cap."""

    def __init__(self, bytes_max: int, full: asyncio.Event) -> None:
        self.data, self.bytes_max, self.full, self.truncated = bytearray(), bytes_max, full, False

    async def collect(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(65_536):
            room = self.bytes_max - len(self.data)
            self.data += chunk[:room]
            if len(chunk) > room:
                self.truncated = True
                self.full.set()


async def _attend(launcher: asyncio.subprocess.Process, read_end: int, stdin: bytes, limits: ChildLimits) -> ChildResult:
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    assert launcher.stderr is not None
    full = asyncio.Event()
    out, err = _Output(limits.output_bytes_max, full), _Output(limits.output_bytes_max, full)
    work = asyncio.gather(_feed(launcher.stdin, stdin), out.collect(launcher.stdout), err.collect(launcher.stderr), launcher.wait())
    flood = asyncio.ensure_future(full.wait())
    either: set[asyncio.Future[Any]] = {work, flood}
    try:
        async with asyncio.timeout(limits.wall_s + SUPERVISOR_GRACE_S):
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if full.is_set():
                _signal(launcher, signal.SIGTERM)
            await asyncio.shield(work)
    except TimeoutError:
        _signal(launcher, signal.SIGKILL)
        await work
    except asyncio.CancelledError:
        _signal(launcher, signal.SIGTERM)
        last = asyncio.get_running_loop().call_later(SUPERVISOR_GRACE_S, _signal, launcher, signal.SIGKILL)
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # once is enough: who cancels again waits for the same end
                await asyncio.wait({work})
        last.cancel()
        raise
    finally:
        flood.cancel()
    truncated = out.truncated or err.truncated
    return _result(os.read(read_end, 65_536), bytes(out.data), bytes(err.data), truncated=truncated)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a command need not read what it is given
        stream.write(data)
        await stream.drain()
        stream.close()
        await stream.wait_closed()


def _signal(launcher: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        launcher.send_signal(number)


def _result(status: bytes, stdout: bytes, stderr: bytes, *, truncated: bool) -> ChildResult:
    reports = [json.loads(line) for line in status.splitlines()]
    for report in reports:
        if "error" in report:
            raise SandboxError(f"the sandbox could not start the command: {report['error']}")
    if not reports:
        raise SandboxError(f"the sandbox ended without a report: {stderr.decode(errors='replace')[-500:].strip() or 'it was killed'}")
    killed: Killed | None = "output" if truncated else reports[-1]["killed"]
    return ChildResult(
        reports[-1]["returncode"], stdout, stderr, timed_out=killed == "timeout", truncated=truncated, killed_reason=killed, used=reports[-1]["used"]
    )
