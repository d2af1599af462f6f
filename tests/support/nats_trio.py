"""Three NATS servers that form a cluster, each of which can be killed and started again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from support.ports import reserved_port

from crewlog.events.child_launch import launch_command

NAMES = ("a", "b", "c")
LOGIN = "crew:secret"


class Trio:
    """Servers by name. `url` names all three: a client finds one that answers."""

    def __init__(self, home: Path, ports: Sequence[int]) -> None:
        self._home = home
        self.ports, self._routes = ports[:3], ports[3:]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return ",".join(f"nats://{LOGIN}@127.0.0.1:{port}" for port in self.ports)

    def start(self, name: str) -> None:
        """Start one of the servers."""
        n, folder = NAMES.index(name), self._home / name
        folder.mkdir(exist_ok=True)
        user, password = LOGIN.split(":")
        config = {
            "listen": f"127.0.0.1:{self.ports[n]}",
            "server_name": name,
            "logfile": str(folder / "log"),
            "jetstream": {"store_dir": str(folder), "max_file_store": 1 << 40},
            "authorization": {"users": [{"user": user, "password": password}]},
            "cluster": {"name": "trio", "listen": f"127.0.0.1:{self._routes[n]}", "routes": [f"nats://127.0.0.1:{port}" for port in self._routes]},
        }
        (folder / "conf").write_text(json.dumps(config))
        self.running[name] = subprocess.Popen(launch_command([Path(sys.executable).with_name("nats-server"), "-c", folder / "conf"]))

    def kill(self, name: str) -> None:
        """Kill one of the servers."""
        process = self.running.pop(name)
        process.kill()
        process.wait()


@asynccontextmanager
async def a_trio() -> AsyncIterator[Trio]:
    """Run a cluster of three until the test is over."""
    with tempfile.TemporaryDirectory(prefix="trio-") as home, ExitStack() as reserving:
        trio = Trio(Path(home), [reserving.enter_context(reserved_port()) for _ in range(2 * len(NAMES))])
        try:
            for name in NAMES:
                trio.start(name)
            yield trio
        finally:
            for name in list(trio.running):
                await asyncio.to_thread(trio.kill, name)
