"""What `crewlog replay --subject` does: a recorded run is published again, event by event; stderr says how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

from crewlog.orchestrator.cli_look import opened
from crewlog.orchestrator.cli_output import load_config, say

LONG_S = 2.0
"""Waits longer than this are announced, in seconds."""


async def publish_again(run: str, subject: str, speed: float, home: Path | None) -> None:
    """Publish a run again; Ctrl-C ends it between two events.

    Raises:
        ContractError: the subject is none, or one of the crew's own.
        NotAuthorised: this login may not publish there.
        Unavailable: no NATS server answers.
    """
    from crewlog.events.clock import SystemClock
    from crewlog.events.nats_bus import NatsBus
    from crewlog.orchestrator.endpoints import nats_url
    from crewlog.orchestrator.republish import republish
    from crewlog.orchestrator.run_history import load_history
    from crewlog.schemas.subjects import parse_foreign

    parse_foreign(subject)
    async with opened(run, home) as (store, run_id):
        history = await load_history(store, run_id)
    bus = await NatsBus.connect(nats_url(load_config(home), "operator").get_secret_value(), name="replay")  # an exported run needs nothing else
    of, published = len(history.events), 0

    def told(index: int, wait_s: float) -> None:
        nonlocal published
        published = index - 1
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{index} of {of} to {subject}" + (f", the next one in {wait_s:.0f} s" if wait_s > LONG_S else "") + "\x1b[K")
            sys.stderr.flush()

    try:
        published = await republish(history, subject, bus, SystemClock(), speed=speed, told=told)
    finally:
        await bus.close()
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
        say(f"published {published} of {of} events of run {run_id} to {subject}")
