"""Options that many commands have, as Typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crewlog.orchestrator.cli_output import Output

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the data.")]
"""The `-o` option that every command with data has."""


def given_path(text: str) -> Path:
    """Read a path that a person gave."""
    if not text:  # as of a variable that a script never set; it would mean the current folder
        raise typer.BadParameter("it is empty: name a file or folder; . is the current one")
    return Path(text)


HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="PATH", parser=given_path, help="Home folder of the crew; else CREWLOG_HOME or the user's data folder.")
]
"""Which crew a command is about."""
