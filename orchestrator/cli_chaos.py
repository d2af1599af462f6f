"""`crewlog chaos`: kill a real crew at random and see whether it keeps its promises."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_options import OutputOption, given_path
from crewlog.orchestrator.cli_output import Exit, Output, plain, print_json, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.chaos import Options
    from crewlog.orchestrator.chaos_strikes import Part

PARTS_HELP = "Strike only these: agents, orchestrators, projector, nats, postgres. May be repeated."


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(chaos))


async def chaos(
    seed: Annotated[int | None, typer.Option("--seed", help="Draw the same strikes and the same load again.")] = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="End after so many SIGKILLs; stopped processes come on top.")] = 60,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="End after this time at the latest.")] = 60.0,
    runs: Annotated[int, typer.Option("--runs", min=1, max=200, help="Runs in flight at any time.")] = 12,
    target: Annotated[list[str] | None, typer.Option("--target", help=PARTS_HELP)] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=16, help="Agent processes.")] = 3,
    home: Annotated[Path | None, typer.Option("--home", metavar="PATH", parser=given_path, help="An empty folder for the crew; else a temporary one.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the home there; it stays anyway when a promise was broken.")] = False,
    output: OutputOption = Output.TABLE,
) -> int:
    """Kill and stop the processes of a real crew under load, then check every promise. Touches no other crew."""
    from crewlog.orchestrator.chaos import Options

    options = Options(seed=_drawn() if seed is None else seed, kills=kills, seconds=seconds, in_flight=runs, parts=_parts(target or []), workers=workers)
    return await play(options, home=home, keep=keep, output=output)


async def play_short(home: Path | None, *, keep: bool) -> int:
    """Show a chaos run of half a minute."""
    from crewlog.orchestrator.chaos import Options

    return await play(Options(seed=_drawn(), kills=40, seconds=25.0), home=home, keep=keep, output=Output.TABLE)


async def play(options: Options, *, home: Path | None, keep: bool, output: Output) -> int:
    """Carry out a chaos run and print its report; the exit code says whether every promise was kept."""
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.chaos import run_chaos
    from crewlog.orchestrator.chaos_text import report_lines

    report = await run_chaos(options, SystemClock(), home=home, keep=keep, say=say)
    if output is Output.JSON:
        print_json({**plain(report), "violations": report.violations})
    else:
        typer.echo("\n".join(report_lines(report)))
    return Exit.RUN_FAILED if report.violations else Exit.OK


def _drawn() -> int:
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.chaos import SEEDS

    return int(SystemClock().fraction() * SEEDS)


def _parts(named: list[str]) -> tuple[Part, ...]:
    from crewlog.orchestrator.chaos_strikes import PARTS
    from crewlog.schemas.errors import ContractError

    if unknown := sorted(set(named) - set(PARTS)):
        raise ContractError(f"{', '.join(unknown)} is no part of a crew; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if not named or part in named)
