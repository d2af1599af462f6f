"""Options that many commands have, as Typer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crewlog.orchestrator.cli_output import Output

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the data.")]
"""The `-o` option that every command with data has."""

HomeOption = Annotated[Path | None, typer.Option("--home", help="Home folder of the crew; else CREWLOG_HOME or the user's data folder.")]
"""Which crew a command is about."""
