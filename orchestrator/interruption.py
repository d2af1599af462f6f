"""Ctrl-C: while a command is loaded, and when it is over, it ends the process at once; while the command runs, it cancels it. Both say how to go on.

An exception in the middle of an import would leave half a module behind, for whoever reports it to trip over.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of the signal, as shells have it."""
AGAIN_CHARS_MAX: Final = 500
"""A longer command line is not shown again: nobody reads it."""


def leave_when_interrupted() -> None:
    """Let a Ctrl-C end the process at once from now on: nothing is begun that would have to be brought to an end. One that is ignored stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def cancelled_when_interrupted() -> Iterator[None]:
    """Let a Ctrl-C in the block raise `KeyboardInterrupt`, so that asyncio makes a cancellation of it."""
    is_ours = signal.getsignal(signal.SIGINT) is _leave
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, _leave)


def say_interrupted() -> None:
    """Tell on stderr that the command was stopped, and how to go on: no command loses what it has done, and none does it twice."""
    again = shlex.join(["crewlog", *sys.argv[1:]])
    if len(again) > AGAIN_CHARS_MAX or not again.isprintable():
        again = "the same command"
    with suppress(OSError):  # nobody may be left who could be told
        os.write(2, f"interrupted; go on with: {again}\n".encode(errors="replace"))


def _leave(_signum: int, _frame: FrameType | None) -> None:
    say_interrupted()
    os._exit(INTERRUPTED)
