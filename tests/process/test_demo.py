"""`crewlog demo` as a newcomer runs it: no terminal, a working directory that cannot be written, nothing running before or after."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from support.live_crew import CLI
from support.reaper import descendants

WITHIN_S = 100.0
"""Patience on a machine that other tests share; alone, a first demo takes less than 45 seconds, a later one less than ten."""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="crewlog-demo-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("CREWLOG_", "ANTHROPIC_"))}


def test_the_whole_story_without_a_terminal(home: Path) -> None:
    done = subprocess.run([*CLI, "demo", "--home", home], capture_output=True, text=True, cwd="/proc", env=environment(), timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "approved by the demo" in done.stderr
    assert "identical: state hash" in done.stderr
    assert "no key needed" in done.stderr
    assert "total" in done.stdout
    assert [pid for pid, command in descendants(os.getpid()).items() if str(home) in command] == []

    (folder,) = (home / "runs").iterdir()
    answer = (folder / "answer.md").read_text()
    for fact in ("3700.66", "5076.02", "5 passed, 0 failed", "05-report-missing-values.md:7", "team@example.org"):
        assert fact in answer
    assert "-    if cell ==" in (folder / "changes.diff").read_text()
    (mail,) = (home / "mail").glob("*.eml")
    message = message_from_bytes(mail.read_bytes(), policy=default)
    assert message["To"] == "team@example.org"
    assert any(str(part.get_filename()).endswith(".svg") for part in message.iter_attachments())


async def test_a_person_at_a_terminal_is_asked_and_may_refuse(home: Path) -> None:
    mails = len(list((home / "mail").glob("*.eml")))
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *CLI, "demo", "--home", str(home), stdin=slave, stdout=slave, stderr=slave, env={**environment(), "TERM": "xterm"}
    )
    os.close(slave)
    seen, arrived = bytearray(), asyncio.Event()

    def read() -> None:
        try:
            seen.extend(os.read(master, 65_536))
        except OSError:  # the other end of a terminal was closed
            asyncio.get_running_loop().remove_reader(master)
        arrived.set()

    asyncio.get_running_loop().add_reader(master, read)
    try:
        async with asyncio.timeout(WITHIN_S):
            while b"[y/N]" not in seen:
                arrived.clear()
                await arrived.wait()
            os.write(master, b"n\n")
            assert await process.wait() == 1
    finally:
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
    assert b"no mail arrived" in seen
    assert len(list((home / "mail").glob("*.eml"))) == mails


async def test_ctrl_c_in_the_middle_leaves_nothing_running(home: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *CLI,
        "demo",
        "--home",
        str(home),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    assert process.stderr is not None
    async with asyncio.timeout(WITHIN_S):
        while b"TaskDispatched" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in rest
    assert [pid for pid, command in descendants(os.getpid()).items() if str(home) in command] == []
