"""How a process tells whoever started it that it serves now: one byte into the pipe that `CREWLOG_READY_FD` names."""

from __future__ import annotations

import os
from typing import Final

READY_FD: Final = "CREWLOG_READY_FD"


def announce_ready() -> None:
    """Tell the supervisor, when there is one, that this process serves now. Only the first call says anything."""
    given = os.environ.pop(READY_FD, None)
    if given is not None:
        os.write(int(given), b"1")
        os.close(int(given))
