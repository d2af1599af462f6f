"""The processes of the crew: agent, orchestrator, projector, and what starts and watches them.

There before Typer is, see `cli_quick`: they live long, and what they load stays.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crewlog.orchestrator.cli_output import Exit, load_config, log_to_stderr, say

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


async def up(agents: Sequence[str] | None = None, home: Path | None = None) -> int:
    """Start the servers and all processes, and keep them running until a signal.

    Args:
        agents: copies per kind, see `supervisor.parse_counts`.
    """
    from crewlog.events.clock import SystemClock
    from crewlog.events.readiness import announce_ready
    from crewlog.orchestrator.supervisor import Supervisor, parse_counts
    from crewlog.schemas.subjects import SHADOW_LANE

    config, counts = load_config(home), parse_counts(agents or [])

    def ready() -> None:
        if config.shadow and not any(group.endswith(f".{SHADOW_LANE}") and copies for group, copies in counts.items()):
            say("CREWLOG_SHADOW is set and no agent takes the work of shadows: start one with crewlog scale KIND.shadow=1")
        say(f"ready: home {config.home}. Try: crewlog submit 'GOAL' --attach FILE --wait. Stop with Ctrl-C or crewlog down.")
        announce_ready()

    supervisor = Supervisor(config, counts, clock=SystemClock(), console=sys.stderr, on_phase=say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.request_stop)
    await supervisor.run(ready)
    return Exit.OK


def process_config(home: Path | None, process: str) -> Config:
    """Read the configuration of a process, with its login, and let it tell on stderr what it does."""
    from crewlog.orchestrator.endpoints import with_login

    log_to_stderr()
    return with_login(load_config(home), process)
