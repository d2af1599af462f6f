"""One nats-server for the whole test session; every test gets an account of its own in it, empty of streams."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest
import pytest_asyncio

from crewlog.events.child_launch import launch_command
from crewlog.events.credentials import NATS_USERS
from crewlog.events.nats_bus import NatsBus
from crewlog.events.server_nats import NatsServer

ACCOUNTS = 32
PASSWORD = "test"  # loopback only


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a server with accounts A0…A31; yields `host:port`."""
    home = tmp_path_factory.mktemp("nats")
    config = {
        "listen": "127.0.0.1:-1",
        "ports_file_dir": str(home),
        "logfile": str(home / "nats-server.log"),
        # reserved, not used: every account may declare the product's stream limits
        "jetstream": {"store_dir": str(home / "store"), "max_memory_store": 1 << 40, "max_file_store": 1 << 40},
        "accounts": {f"A{n}": {"jetstream": "enabled", "users": [{"user": f"a{n}", "password": PASSWORD}]} for n in range(ACCOUNTS)},
    }
    (home / "nats.conf").write_text(json.dumps(config))
    binary = Path(sys.executable).with_name("nats-server")
    process = subprocess.Popen(launch_command([binary, "-c", home / "nats.conf"]))
    try:
        yield _ready(process, home / f"nats-server_{process.pid}.ports").removeprefix("nats://")
    finally:
        process.terminate()
        process.wait(10)


def _ready(process: subprocess.Popen[bytes], ports: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"nats-server ended with {process.returncode}"
        try:
            return str(json.loads(ports.read_text())["nats"][0])
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.005)
    raise AssertionError("nats-server wrote no ports file within 60 s")


@pytest.fixture(scope="session")
def nats_accounts() -> list[int]:
    """Return the free accounts."""
    return list(range(ACCOUNTS))


@pytest_asyncio.fixture
async def nats_url(nats_server: str, nats_accounts: list[int]) -> AsyncIterator[str]:
    """Yield a url whose account this test has for itself; its streams are deleted afterwards."""
    account = nats_accounts.pop(0)
    url = f"nats://a{account}:{PASSWORD}@{nats_server}"
    yield url
    nc = await nats.connect(url, inbox_prefix=f"_INBOX_a{account}")
    try:
        js = nc.jetstream()
        for stream in await js.streams_info():
            await js.delete_stream(str(stream.config.name))
    finally:
        await nc.close()
    nats_accounts.append(account)


@pytest_asyncio.fixture
async def nats_bus(nats_url: str) -> AsyncIterator[NatsBus]:
    """Yield a connected bus with all streams."""
    bus = await NatsBus.connect(nats_url, name="test")
    await bus.ensure_kind("research")
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def real_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """Yield the product's own server with its users and permissions; every user's password is its name reversed."""
    server = NatsServer(tmp_path / "nats", {user: user[::-1] for user in NATS_USERS})
    await server.start()
    yield server
    await server.stop()
