"""Commands about the crew as a whole: demo, up, down, status, providers, scale, doctor."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, hush, load_config, plain, print_json, print_lines, print_table, run_async, say

DETACH_WITHIN_S = 90.0
STOP_WITHIN_S = 60.0
HELD_MAX = 1_000
"""Runs that wait for money which `status` asks for."""
HELD_SHOWN = 20


class Scenario(StrEnum):
    """What the demo shows."""

    RELEASE = "release"
    CHAOS = "chaos"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run_async(demo))
    app.command()(run_async(up))
    app.command()(run_async(down))
    app.command()(run_async(status))
    app.command()(run_async(providers))
    app.command()(run_async(scale))
    app.command()(run_async(doctor))


async def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the crew running afterwards.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Approve the mail without asking.")] = False,
    scenario: Annotated[Scenario, typer.Option("--scenario", help="release: a goal from start to replay. chaos: the same machinery being killed.")] = (
        Scenario.RELEASE
    ),
    home: HomeOption = None,
) -> int:
    """Show a real crew at work on a small goal, from start to replay. No key and no other program needed."""
    if scenario is Scenario.CHAOS:
        from crewlog.orchestrator.cli_chaos import play_short

        return await play_short(home, keep=keep)
    from crewlog.orchestrator.demo_run import run_demo

    return await run_demo(home, keep=keep, yes=yes)


async def up(
    agents: Annotated[list[str] | None, typer.Option("--agents", help="Copies per kind, for example research=2,code=1,research.shadow=1.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as everything is ready.")] = False,
    home: HomeOption = None,
) -> int:
    """Start the servers, the orchestrator, the projector and the agents, and keep them running."""
    from crewlog.orchestrator.cli_work import up as run_crew
    from crewlog.orchestrator.supervisor import parse_counts

    if not detach:
        return await run_crew(agents, home)
    parse_counts(agents or [])
    return await _detach(load_config(home).home, agents or [])


async def _detach(home: Path, agents: list[str]) -> int:
    from crewlog.events.readiness import READY_FD
    from crewlog.events.server_postgres import RECOVERS
    from crewlog.orchestrator.home import Home
    from crewlog.orchestrator.supervised import reading_pipe

    place = Home(home)
    place.prepare()
    log = place.open_log("supervisor")
    command = [sys.executable, "-P", "-m", "crewlog.orchestrator", "up", "--home", str(home), *(f"--agents={counts}" for counts in agents)]
    ready_end, child_end = os.pipe()
    with log.open("ab") as file:
        start = file.tell()
        # not asyncio's subprocess: that one kills its child when this process ends
        process = subprocess.Popen(  # noqa: ASYNC220
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=(child_end,),
            env={**os.environ, READY_FD: str(child_end)},
            start_new_session=True,
        )
    os.close(child_end)
    try:
        # the pipe ends without a byte when the supervisor ends: no need to watch the process as well
        async with reading_pipe(ready_end) as reader:
            is_ready = await _until_ready(reader, lambda: log.read_bytes()[start:].count(RECOVERS.encode()))
    except asyncio.CancelledError:
        process.terminate()
        raise
    except TimeoutError:
        process.terminate()
        raise TimeoutError(f"the crew was not ready within {DETACH_WITHIN_S:g} s and is being stopped; what it said: {log}") from None
    if not is_ready:
        sys.stderr.write(log.read_bytes()[start:].decode(errors="replace"))
        return process.wait(timeout=STOP_WITHIN_S) or Exit.USAGE
    say(f"crewlog runs in the background (pid {process.pid}), log: {log}. Stop it with: crewlog down")
    return Exit.OK


async def _until_ready(reader: asyncio.StreamReader, recovered: Callable[[], int]) -> bytes:
    """Wait for the byte that says that the crew is ready, and longer while its Postgres goes on with its recovery.

    Args:
        recovered: how often it was said to go on.

    Raises:
        TimeoutError: neither is there for `DETACH_WITHIN_S`.
    """
    steps = 0
    while True:
        try:
            async with asyncio.timeout(DETACH_WITHIN_S):
                return await reader.read(1)
        except TimeoutError:
            before, steps = steps, recovered()
            if steps == before:
                raise


async def down(home: HomeOption = None) -> int:
    """Stop a running crew: agents finish or hand back their work, then the servers stop."""
    from crewlog.orchestrator.control import stop_crew
    from crewlog.orchestrator.home import Home

    place = Home(load_config(home).home)
    pid = await stop_crew(place, within_s=STOP_WITHIN_S)
    say(f"stopped (pid {pid})" if pid else f"nothing runs in {place.path}")
    return Exit.OK


async def status(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show the processes of the crew and the agents that registered."""
    from crewlog.orchestrator.cli_run import control_line, hold_text
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.errors import Unavailable

    config = load_config(home)
    async with Client.connect(config) as client:
        try:
            processes = await client.processes()
        except Unavailable as error:
            processes = []
            say(str(error))
        workers, lag, problems = await client.workers(), await client.queries().lag(), await client.queries().problems()
        troubled = [p for p in await client.providers() if p.state != "closed"]
        held, controls = await client.runs(status="held", limit=HELD_MAX), await client.queries().controls()
        still = await client.queries().standstills(config.tenant)
    if output is Output.JSON:
        fields = ("kind", "worker", "version", "slots", "model", "simulated", "unavailable", "started_at", "is_shadow")
        agents = [{f: plain(getattr(w, f)) for f in fields} for w in workers]
        views = {"providers": plain(troubled), "views": plain(lag), "problems": plain(problems)}
        views["held"] = [{"run_id": str(run.run_id), **plain(run.hold)} for run in held if run.hold is not None]
        views["controls"] = plain(controls)
        views["standstills"] = plain(still)
        print_json({"home": str(config.home), "processes": plain(processes), "agents": agents, **views})
        return
    if processes:
        print_table(["PROCESS", "STATE", "PID", "RESTARTS"], [[p.name, p.state, p.pid, p.restarts] for p in processes])
        typer.echo()
    print_table(["AGENT", "WORKER", "VERSION", "SLOTS", "MODEL", ""], [[w.group, w.worker, w.version, w.slots, w.model, w.unavailable] for w in workers])
    typer.echo()
    for provider in troubled:
        until = f" until {provider.until_at.astimezone():%H:%M:%S}" if provider.until_at else ""
        print_lines([f"{provider.worker} does not ask {provider.provider}/{provider.model}{until}: {provider.reason}"])
    for run in held[:HELD_SHOWN]:
        if run.hold is not None:
            print_lines([f"run {str(run.run_id)[:8]} is {hold_text(run.hold)}"])
    if len(held) > HELD_SHOWN:
        print_lines([f"and {len(held) - HELD_SHOWN}{' or more' if len(held) == HELD_MAX else ''} others are held: crewlog runs --status held"])
    for control in controls:
        print_lines([control_line(control)])
    for one in still:
        short = str(one.run_id)[:8]
        print_lines([f"run {short} stands still since {one.since_at.astimezone():%Y-%m-%d %H:%M:%S}: {one.what}; see: crewlog why {short}"])
    behind = [view for view in lag if view.waiting_since is not None]
    if behind:
        print_table(["VIEW BEHIND THE LOG", "AT", "LOG AT", "SINCE"], [[v.name, v.position, v.head, v.waiting_since] for v in behind])
    else:
        print_lines(["views: level with the log"])
    if config.mcp:
        servers = "; ".join(f"{name} for {', '.join(server.kinds)}" for name, server in sorted(config.mcp.items()))
        print_lines([f"MCP servers: {servers} (crewlog doctor looks whether they answer)"])
    for problem in problems:
        print_lines([f"left out by {problem.projection}: position {problem.position}: {problem.error}"])


async def providers(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show which models failed the agents that run, which are not asked for a while, and why."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.providers()
    if output is Output.JSON:
        print_json({"providers": plain(found)})
    elif found:
        rows = [[p.provider, p.model, p.state, p.reason, f"{p.until_at.astimezone():%H:%M:%S}" if p.until_at else "", p.kind, p.worker] for p in found]
        print_table(["PROVIDER", "MODEL", "STATE", "REASON", "UNTIL", "AGENT", "WORKER"], rows)
    else:
        print_lines(["every model is asked: no agent that runs keeps away from one"])


async def scale(
    counts: Annotated[list[str], typer.Argument(metavar="KIND=NUMBER", help="For example research=4 code=1 research.shadow=1.")],
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change how many copies of an agent run. Copies that go finish or hand back their work first."""
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.supervisor import parse_counts

    wanted = parse_counts(counts)
    async with Client.connect(load_config(home)) as client:
        agents = await client.scale(wanted)
    if output is Output.JSON:
        print_json({"agents": agents})
    else:
        print_table(["AGENT", "COPIES"], list(agents.items()))


async def doctor(home: HomeOption = None, output: OutputOption = Output.TABLE) -> int:
    """Check what this machine has and what is missing, with the step that helps."""
    from crewlog.orchestrator.doctor import examine

    hush("crewlog.agents")
    findings = await examine(load_config(home))
    if output is Output.JSON:
        print_json([finding._asdict() for finding in findings])
    else:
        print_table(
            ["", "CHECK", "FOUND", "WHAT HELPS"], [["ok" if f.ok else "!!" if f.needed else "--", f.check, f.found, "" if f.ok else f.hint] for f in findings]
        )
    if all(finding.ok or not finding.needed for finding in findings):
        return Exit.OK
    complain("something that crewlog needs is missing", next_step="see the lines marked !!")
    return Exit.RUN_FAILED
