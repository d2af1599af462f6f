"""A bench with a folder for child processes, for tools that start some."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from support.toolbox import Bench

from crewlog.agents.spec import ToolContext


@dataclass
class Workshop(Bench):
    """Tool calls of one task that may run children below `folder`."""

    folder: Path = field(default=Path("/nonexistent"))

    def context(self) -> ToolContext:
        return replace(super().context(), workspace=self.folder)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that other users may enter, as the workspaces of a crew are; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="crewlog-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        assert not list(folder.iterdir()), "a child's folder was left behind"
        shutil.rmtree(folder)
