"""Start a server so that it cannot outlive us: a command line that first arranges that, then becomes the server.

Linux sends a process the chosen signal when the thread that started it ends (prctl PR_SET_PDEATHSIG). Changing the user clears that
wish, so both are done in one place, by a Python that then replaces itself. It leads a process group of its own: a Ctrl-C in the
terminal is meant for us, and who stops the server in its turn are we. This is not `preexec_fn`, which runs between fork and exec
in a process that may have threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from pwd import struct_passwd
from typing import Any, Final

_LAUNCH: Final = """
import ctypes, os, sys
uid, gid, number, parent = map(int, sys.argv[1:5])
os.setpgid(0, 0)
if uid >= 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
ctypes.CDLL(None).prctl(1, number, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
try:
    os.execv(sys.argv[5], sys.argv[5:])
except OSError as error:
    sys.exit(f"{sys.argv[5]}: {error.strerror}")
"""


def launch_command(command: Sequence[str | Path], *, user: struct_passwd | None = None, signal_number: signal.Signals = signal.SIGTERM) -> list[str]:
    """Wrap a command.

    Args:
        user: whom to run as, when we are root; None keeps the user.
        signal_number: what the child gets when its parent ends.

    Returns:
        The command line to start from the main thread, with this very process as the parent.
    """
    ids = (user.pw_uid, user.pw_gid) if user else (-1, -1)
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, *map(str, (*ids, int(signal_number), os.getpid(), *command))]


async def spawn(*command: str | Path, **options: Any) -> Process:
    """Start a child as `asyncio.create_subprocess_exec` does, and survive being cancelled meanwhile.

    There, a cancellation between the fork and the connection of the pipes can wait for ever for an end that is never told. Here the
    start always comes to its end, and a child that nobody wants any more is killed.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process = await starting
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        raise
