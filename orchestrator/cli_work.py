"""The processes of the crew: agent, orchestrator, projector. There before Typer is, see `cli_quick`: they live long, and what they load stays."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from crewlog.orchestrator.cli_output import load_config

if TYPE_CHECKING:
    from crewlog.events.config import Config


async def agent(kind: str, home: Path | None = None, *, shadow: bool = False) -> None:
    """Run a worker of a built-in kind, or of a user's `module:ATTRIBUTE`."""
    from crewlog.agents.process import run_agent

    await run_agent(process_config(home, kind), kind, shadow=shadow)


async def orchestrator(home: Path | None = None) -> None:
    """Run an orchestrator."""
    from crewlog.orchestrator.service import run_orchestrator

    await run_orchestrator(process_config(home, "orchestrator"))


async def projector(home: Path | None = None) -> None:
    """Run a projector."""
    from crewlog.projections.process import run_projector

    await run_projector(process_config(home, "projector"))


def process_config(home: Path | None, process: str) -> Config:
    """Read the configuration of a process, with its login, and let it tell on stderr what it does."""
    from crewlog.orchestrator.endpoints import with_login

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return with_login(load_config(home), process)
