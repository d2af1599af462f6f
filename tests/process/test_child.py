"""Attacks on the machine by a child, in every isolation that works here. As root and as an ordinary user."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from support.workshop import open_folder

from crewlog.agents.child import LIMITS_ONLY, MIB, ChildLimits, ChildResult, SandboxError, run_child
from crewlog.agents.child_launcher import (
    JOIN_SESSION_KEYRING,
    KEYCTL,
    LANDLOCK_SIGNALS_SINCE,
    LANDLOCK_VERSION,
    SYS_LANDLOCK_CREATE_RULESET,
    processes_of,
)
from crewlog.agents.sandbox import Sandbox, clean_environment
from crewlog.agents.scratch import scratch

MECHANISMS = ("namespaces", *(["bubblewrap"] if shutil.which("bwrap") else []), "limits-only")
DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon is up", flush=True)
        time.sleep(300)
    os._exit(0)
"""
STUBBORN, LEFT, CANCELLED = (f"{what}-{uuid4()}" for what in ("stubborn", "left", "cancelled"))
"""Arguments by which the processes of one test run are found on a machine where another one may run the same."""
LIVES = f"life = open('life', 'wb', 0)\n{DAEMON}\nlife.write(b'!')\ntime.sleep(300)"
"""Holds one end of a pipe, as does its daemon: the other end sees when the last of them is gone."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MECHANISMS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    runtimes = Path(tempfile.mkdtemp(prefix="crewlog-runtimes-", dir="/var/tmp"))
    runtimes.chmod(0o755)  # noqa: ASYNC240
    found = Sandbox(mechanisms=(request.param,), runtimes=runtimes)
    try:
        try:
            await found.ready()
        except SandboxError as error:
            pytest.skip(str(error))
        yield found
    finally:
        shutil.rmtree(runtimes)


async def run(sandbox: Sandbox, folder: Path, code: str, *arguments: str, **limits: float) -> ChildResult:
    with scratch(folder) as place:
        return await sandbox.run_python(["-c", code, *arguments], folder=place, limits=ChildLimits(**{"wall_s": 20.0, **limits}))  # type: ignore[arg-type]


def alive(mark: str) -> list[int]:
    """Return the processes of this machine that were started with this argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                parts = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in parts:
                found.append(int(entry.name))
    return found


async def test_the_result_is_what_the_program_did(sandbox: Sandbox, folder: Path) -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('oops', file=sys.stderr); sys.exit(3)"
    with scratch(folder) as place:
        result = await sandbox.run_python(["-c", code], folder=place, limits=ChildLimits(), stdin=b"hello")
    assert (result.returncode, result.stdout, result.stderr) == (3, b"HELLO\n", b"oops\n")
    assert (result.timed_out, result.truncated, result.killed_reason, result.ok) == (False, False, None, False)


async def test_a_child_is_never_root_and_has_no_rights(sandbox: Sandbox, folder: Path) -> None:
    code = """
import os
status = open("/proc/self/status").read()
print(os.getuid() != 0 and os.getgid() != 0, "CapEff:\\t0000000000000000" in status, "NoNewPrivs:\\t1" in status)
open("mine.txt", "w").write("the folder is writable")
"""
    result = await run(sandbox, folder, code)
    assert result.ok, result.stderr
    assert result.stdout.split() == [b"True", b"True", b"True"]


async def test_packages_can_be_imported(sandbox: Sandbox, folder: Path) -> None:
    assert (await run(sandbox, folder, "import pytest, duckdb, subprocess, sys; subprocess.run([sys.executable, '-c', 'import duckdb'], check=True)")).ok


async def test_time_ends_a_tree_that_ignores_signals(sandbox: Sandbox, folder: Path) -> None:
    code = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork(); os.fork()\nwhile True: time.sleep(100)"
    result = await run(sandbox, folder, code, STUBBORN, wall_s=0.7)
    assert (result.timed_out, result.killed_reason, result.returncode) == (True, "timeout", -signal.SIGKILL)
    assert alive(STUBBORN) == []


async def test_a_daemon_does_not_outlive_its_command(sandbox: Sandbox, folder: Path) -> None:
    result = await run(sandbox, folder, DAEMON + "else: sys.stdin.read(); os.wait()", LEFT)
    assert result.ok, result.stderr
    assert alive(LEFT) == []


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_ends_the_child(sandbox: Sandbox, folder: Path, times: int) -> None:
    with scratch(folder) as place:
        os.mkfifo(place / "life")
        work = asyncio.create_task(sandbox.run_python(["-c", LIVES, CANCELLED], folder=place, limits=ChildLimits()))
        with await asyncio.to_thread((place / "life").open, "rb", 0) as life:
            assert await asyncio.to_thread(life.read, 1) == b"!"
            for _ in range(times):  # by the end of the tool's time, then by that of the task
                work.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await work
            assert alive(CANCELLED) == []
            assert await asyncio.to_thread(life.read) == b"", "all that held the other end are gone"


async def test_a_fork_bomb_is_bounded(sandbox: Sandbox, folder: Path) -> None:
    code = """
import os, time
made = 0
for _ in range(4000):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    except OSError:
        break
print(made, flush=True)
"""
    before = 0 if os.geteuid() == 0 else processes_of(os.getuid())
    result = await run(sandbox, folder, code, processes_max=40)
    assert 0 < int(result.stdout) <= 40 + before + 20


async def test_one_process_cannot_take_more_memory_than_allowed(sandbox: Sandbox, folder: Path) -> None:
    result = await run(sandbox, folder, "x = bytearray(1 << 30)", address_bytes_max=512 * MIB)
    assert b"MemoryError" in result.stderr


async def test_many_processes_cannot_take_more_memory_together(sandbox: Sandbox, folder: Path) -> None:
    code = "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        x = b'x' * (60 << 20); time.sleep(60)\ntime.sleep(60)"
    assert (await run(sandbox, folder, code, resident_bytes_max=160 * MIB)).killed_reason == "memory"


async def test_forks_that_share_their_memory_count_once(sandbox: Sandbox, folder: Path) -> None:
    if (await sandbox.ready()).level == "limits-only" and os.geteuid() == 0:
        pytest.skip("what is shared can be seen in the private view only")
    code = """
import os, time
x = bytes(bytearray(80 << 20))
for _ in range(4):
    if os.fork() == 0:
        time.sleep(0.4)
        os._exit(0)
for _ in range(4):
    os.wait()
"""
    assert (await run(sandbox, folder, code, resident_bytes_max=200 * MIB)).ok


async def test_a_flood_of_output_is_cut(sandbox: Sandbox, folder: Path) -> None:
    result = await run(sandbox, folder, "import sys\nwhile True: sys.stdout.write('x' * 65536)", output_bytes_max=100_000)
    assert (result.truncated, result.killed_reason, len(result.stdout)) == (True, "output", 100_000)


async def test_a_file_has_a_largest_size(sandbox: Sandbox, folder: Path) -> None:
    result = await run(sandbox, folder, "open('big', 'wb').write(b'x' * (3 << 20))", file_bytes_max=MIB)
    assert result.returncode in (1, -signal.SIGXFSZ)


def may_look_into_others() -> bool:
    capabilities = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(capabilities.split()[1], 16) >> 19 & 1)


STORES = {
    "files": "for n in range(1000):\n    open(f'f{n}', 'wb').write(bytes(1 << 20)); time.sleep(0.005)",
    "folders": "for n in range(10**6):\n    os.mkdir(f'd{n}')",
    "deleted": "held = []\nfor n in range(200):\n    held.append(open('f', 'wb', 0)); held[-1].write(bytes(1 << 20)); os.unlink('f'); time.sleep(0.005)",
    "in memory": "held = [os.memfd_create('m') for _ in range(200)]\nfor fd in held:\n    os.write(fd, bytes(1 << 20)); time.sleep(0.005)",
}


@pytest.mark.parametrize("way", STORES)
async def test_all_that_is_stored_is_bounded(sandbox: Sandbox, folder: Path, way: str) -> None:
    if way in ("deleted", "in memory") and (await sandbox.ready()).level == "limits-only" and os.geteuid() == 0 and not may_look_into_others():
        pytest.skip("what another user holds open cannot be seen")
    code = f"import os, time\n{STORES[way]}\ntime.sleep(100)"
    result = await run(sandbox, folder, code, folder_bytes_max=40 * MIB, folder_files_max=2_000, wall_s=60)
    assert (result.killed_reason, result.returncode, result.timed_out) == ("disk", -signal.SIGKILL, False), result.stderr
    assert result.used.endswith("files, of 40 MiB and 2000 files at most"), result.used


async def test_what_hides_is_stopped_before_the_disk_is_full(sandbox: Sandbox, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", disk], capture_output=True, check=False).returncode != 0:  # noqa: ASYNC221
        disk.rmdir()
        pytest.skip("nothing can be mounted here")
    try:
        deep = "for n in range(20):\n    os.mkdir('d' * 250); os.chdir('d' * 250)\n"
        result = await run(
            sandbox, disk, f"import os, time\n{deep}{STORES['files'].replace('0.005', '0.05')}\ntime.sleep(100)", folder_bytes_max=40 * MIB, wall_s=60
        )
    finally:
        subprocess.run(["umount", disk], check=True)  # noqa: ASYNC221
        disk.rmdir()
    assert (result.killed_reason, result.returncode) == ("disk", -signal.SIGKILL), result.stderr
    assert result.used.startswith("not all of it can be seen, and of the disk "), result.used


async def test_what_was_in_the_folder_before_and_links_do_not_count_as_stored(sandbox: Sandbox, folder: Path) -> None:
    with scratch(folder) as place:
        (place / "given").write_bytes(bytes(30 * MIB))
        code = "import os, time\nopen('mine', 'wb').write(bytes(5 << 20))\nfor n in range(20): os.link('mine', f'm{n}')\ntime.sleep(0.5)"
        result = await sandbox.run_python(["-c", code], folder=place, limits=ChildLimits(wall_s=60, folder_bytes_max=10 * MIB, folder_files_max=30))
    assert result.ok, (result.used, result.stderr)


async def test_secrets_of_the_worker_are_out_of_reach(sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREWLOG_DATABASE_URL", "postgresql://crewlog_code:s3cr3t@localhost/crewlog")
    code = """
import os, pathlib
text = str(dict(os.environ))
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        text += path.read_bytes().decode(errors="replace")
    except OSError:
        pass
print("s3cr3t" in text, "CREWLOG" in str(dict(os.environ)))
"""
    result = await run(sandbox, folder, code)
    in_processes, in_environment = result.stdout.split()
    assert in_environment == b"False"
    if (await sandbox.ready()).level == "namespaces" or os.geteuid() == 0:  # else, without Landlock, a user may look at all of that user's processes
        assert in_processes == b"False"


OF_AN_ORDINARY_USER = """
import asyncio, os, pathlib, sys
from crewlog.agents.child import ChildLimits
from crewlog.agents.sandbox import Sandbox
from crewlog.agents.scratch import scratch
async def main():
    with scratch(pathlib.Path("inner").absolute()) as place:
        sandbox = Sandbox(mechanisms=("limits-only",))
        result = await sandbox.run_python(["-c", sys.argv[1], str(os.getpid())], folder=place, limits=ChildLimits())
    sys.stdout.write(f"{os.getuid() != 0} {result.stdout.decode()}")
    sys.stderr.write(result.stderr.decode())
asyncio.run(main())
"""
"""A worker that is not root, inside of a sandbox: what it runs is of its own user."""


async def test_the_worker_of_an_ordinary_user_is_left_alone(folder: Path) -> None:
    landlock = ctypes.CDLL(None).syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION)
    if landlock < LANDLOCK_SIGNALS_SINCE:
        pytest.skip("this kernel does not keep apart what is of one user")
    attack = """
import os, signal, sys
def refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False
for pid in (os.getppid(), int(sys.argv[1])):
    print(*(refused(lambda: open(f"/proc/{pid}/{what}", "rb")) for what in ("environ", "mem")), refused(lambda: os.kill(pid, signal.SIGCONT)))
"""
    runtimes = Path(tempfile.mkdtemp(prefix="crewlog-runtimes-", dir="/var/tmp"))
    runtimes.chmod(0o755)  # noqa: ASYNC240
    try:
        result = await run(Sandbox(mechanisms=("limits-only",), runtimes=runtimes), folder, OF_AN_ORDINARY_USER, attack)
    finally:
        shutil.rmtree(runtimes)
    assert result.stdout.split() == [b"True"] * 7, (result.stdout, result.stderr)


async def test_keys_in_the_keyring_of_the_worker_stay_there(sandbox: Sandbox, folder: Path) -> None:
    keyctl, libc = KEYCTL.get(os.uname().machine), ctypes.CDLL(None, use_errno=True)
    if keyctl is None or libc.syscall(keyctl, JOIN_SESSION_KEYRING, None) < 0:
        pytest.skip("this machine has no keyrings")
    name = uuid4().hex
    assert libc.syscall(keyctl - 2, b"user", name.encode(), b"s3cr3t", 6, -3) > 0  # add_key, to that of the session
    code = f"""
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({keyctl}, 10, -3, b"user", sys.argv[1].encode(), 0) > 0)
"""
    result = await run(sandbox, folder, code, name)
    assert (result.stdout, result.returncode) == (b"False\n", 0), result.stderr


async def test_namespaces_hide_network_files_and_processes(sandbox: Sandbox, folder: Path) -> None:
    if (await sandbox.ready()).level != "namespaces":
        pytest.skip("the limits alone hide nothing")
    secret = folder.parent / f"{folder.name}.secret"
    secret.write_text("s3cr3t")
    secret.chmod(0o644)
    code = """
import os, pathlib, socket, sys
def refused(action):
    try:
        action()
    except OSError:
        return True
    return False
print(
    refused(lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)),
    refused(lambda: open(sys.argv[2])),
    refused(lambda: open("/etc/shadow")),
    refused(lambda: open("/usr/x", "w")),
    refused(lambda: open(sys.executable, "ab")),
    refused(lambda: os.kill(int(sys.argv[3]), 0)),
    pathlib.Path("/etc/hostname").exists() or pathlib.Path("/run").exists() or pathlib.Path("/sys").exists(),
    len([p for p in os.listdir("/proc") if p.isdigit()]) <= 3,
)
"""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            result = await run(sandbox, folder, code, str(server.getsockname()[1]), str(secret), str(os.getpid()))
    finally:
        secret.unlink()
    assert result.stdout.split() == [b"True"] * 6 + [b"False", b"True"], (result.stdout, result.stderr)


async def test_tests_may_use_their_own_loopback(sandbox: Sandbox, folder: Path) -> None:
    code = "import socket\ns = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname(), 2); print('connected')"
    assert (await run(sandbox, folder, code)).stdout == b"connected\n"


async def test_a_minimum_is_kept(folder: Path) -> None:
    strict = Sandbox(minimum="namespaces", mechanisms=("limits-only",))
    with scratch(folder) as place:
        with pytest.raises(SandboxError, match="no sandbox at level namespaces works here"):
            await strict.run_python(["-c", "open('ran', 'w')"], folder=place, limits=ChildLimits())
        assert not (place / "ran").exists()


async def test_locked_folders_and_links_are_cleaned_up(sandbox: Sandbox, folder: Path) -> None:
    code = "import os; os.makedirs('a/b'); os.symlink('/etc', 'a/link'); open('a/b/c', 'w'); os.chmod('a/b', 0); os.chmod('a', 0)"
    assert (await run(sandbox, folder, code)).ok
    assert Path("/etc/passwd").exists()  # noqa: ASYNC240


async def test_a_command_that_cannot_start_is_an_error(folder: Path) -> None:
    with scratch(folder) as place, pytest.raises(SandboxError, match="no-such-program"):
        await run_child(["/no-such-program"], cwd=place, limits=ChildLimits(), env=clean_environment(place), isolation=LIMITS_ONLY)


async def test_a_killed_worker_takes_its_children_along(folder: Path) -> None:
    program = f"""
import asyncio, pathlib, sys
from crewlog.agents.child import ChildLimits
from crewlog.agents.sandbox import Sandbox
asyncio.run(Sandbox().run_python(["-c", {LIVES!r}], folder=pathlib.Path(sys.argv[1]), limits=ChildLimits()))
"""
    with scratch(folder) as place:
        os.mkfifo(place / "life")
        worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(place))
        with await asyncio.to_thread((place / "life").open, "rb", 0) as life:
            assert await asyncio.to_thread(life.read, 1) == b"!"
            worker.kill()
            await worker.wait()
            assert await asyncio.to_thread(life.read) == b"", "all that held the other end are gone"
