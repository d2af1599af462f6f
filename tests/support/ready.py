"""A process of ours beside a crew, from when it says that it is ready until it has ended in good order."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from crewlog.events.readiness import READY_FD


@contextmanager
def ready(command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command and yield it once it is ready."""
    says, child = os.pipe()
    process = subprocess.Popen(command, cwd=cwd, env={**env, READY_FD: str(child)}, pass_fds=(child,))
    os.close(child)
    try:
        assert os.read(says, 1) == b"1"
        yield process
    finally:
        os.close(says)
        process.terminate()
        process.wait(60)
