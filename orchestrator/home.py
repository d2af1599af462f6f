"""The home folder of one installation: its lock, its layout and what the supervisor says about itself.

lock  state.json  credentials.json  postgres/  nats/  artifacts/  workspaces/  logs/
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, Literal

import msgspec

from crewlog.schemas.errors import ConfigError

LOG_BYTES_MAX: Final = 8 * 1024 * 1024
LOOKS_MAX: Final = 100
LOOK_S: Final = 0.002
"""Who looks for the holder of a lock has it for less than that, in seconds."""


class AlreadyRunning(ConfigError):
    """Another `crewlog up` holds the lock of this home; two servers on one data folder would destroy it."""

    code = "already_running"


class ProcessState(msgspec.Struct, frozen=True):
    """One supervised process as people see it."""

    name: str
    kind: str
    state: str
    pid: int | None
    restarts: int


class State(msgspec.Struct, frozen=True):
    """`state.json`: what runs and where it listens. Ports stay the same over restarts, so that clients find it again."""

    pid: int
    phase: Literal["starting", "running", "stopping", "stopped"]
    started_us: int
    database_port: int | None
    nats_port: int | None
    processes: tuple[ProcessState, ...] = ()


class Home:
    """Paths and state of one home folder."""

    def __init__(self, path: Path) -> None:
        """Name its parts.

        Raises:
            ConfigError: it begins with `~` and a user who does not exist.
        """
        try:
            self.path = path.expanduser().absolute()
        except RuntimeError:
            raise ConfigError(
                f"the home folder {path} is that of a user who does not exist", hint="choose another one: --home DIR or CREWLOG_HOME=DIR"
            ) from None
        self.logs = self.path / "logs"
        self.credentials = self.path / "credentials.json"
        self._state = self.path / "state.json"
        self._lock = self.path / "lock"

    def prepare(self) -> None:
        """Make the folders. What is made is for its owner alone; a mode that somebody gave a folder that is there is kept.

        Raises:
            ConfigError: the home cannot be written.
        """
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True, mode=0o700)
                if os.geteuid() == 0:
                    self.path.chmod(0o711)  # the embedded Postgres refuses root: its own user must be able to come through here
            for name in ("artifacts", "workspaces", "logs"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            probe = self.path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the home folder {self.path} cannot be written: {error.strerror}", hint="choose another one: --home DIR or CREWLOG_HOME=DIR"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the exclusive lock of this home; the kernel lets go of it however this process ends.

        Raises:
            AlreadyRunning: naming the process that holds it.
        """
        with self._lock.open("a+") as file:
            if not _take(file):
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise AlreadyRunning(
                    f"crewlog already runs in {self.path} (pid {holder})", hint="see it: crewlog status; stop it: crewlog down; or choose another --home"
                )
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def holder(self) -> int | None:
        """Return the process that holds the lock now, or None."""
        if not self._lock.exists():
            return None
        with self._lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read().strip() or 0) or None
        return None

    def state(self) -> State | None:
        """Return what the last supervisor wrote, or None.

        Raises:
            ConfigError: this user may not read it.
        """
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=State)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            return None
        except OSError as error:
            raise ConfigError(f"{self._state} cannot be read: {error.strerror}", hint="do it as the user who began this crew") from error

    def write_state(self, state: State) -> None:
        """Replace `state.json` in one step, so that no reader sees half of it."""
        fresh = self._state.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))
        fresh.replace(self._state)

    def open_log(self, name: str) -> Path:
        """Return the log file of a process, moved aside when it has grown too large."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path


def _take(file: IO[str]) -> bool:
    """Take the lock of a home; False when another process holds it. One that only looks who does, as `holder`, lets go of it at once."""
    for _ in range(LOOKS_MAX):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(LOOK_S)
    return False


async def wait_gone(pid: int, *, timeout_s: float) -> bool:
    """Wait until a process that is not our child has ended; returns whether it has. Nothing polls: the kernel tells."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, gone.set)
    try:
        async with asyncio.timeout(timeout_s):
            await gone.wait()
    except TimeoutError:
        return bool(select.select([fd], [], [], 0)[0])
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True


def terminate(pid: int) -> None:
    """Ask a process to stop in good order."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
