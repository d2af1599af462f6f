"""No test leaves a process behind: orphans of every depth become children of the test run, and the session ends by counting them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 30.0


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> dict[int, str]:
    """Return the living descendants of a process: pid -> command line. Those that only wait to be collected do not count."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended while we looked
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    while grown := {pid for pid, parent in parents.items() if pid not in found and (parent == root or parent in found)}:
        found |= grown
    return {pid: _command(pid) for pid in sorted(found)}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def left_over(root: int, patience_s: float = _PATIENCE_S) -> dict[int, str]:
    """Return what is still running after giving it a moment to end."""
    deadline = time.monotonic() + patience_s
    while (living := descendants(root)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return living


@pytest.fixture(scope="session", autouse=True)
def no_orphans() -> Iterator[None]:
    """Fail the session when a process is left, and end it."""
    adopt_orphans()
    before = descendants(os.getpid())
    yield
    if sys.platform != "linux":
        return
    living = {pid: command for pid, command in left_over(os.getpid()).items() if pid not in before}
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    assert not living, "processes left behind by the tests: " + "; ".join(f"{pid} {command}" for pid, command in living.items())
