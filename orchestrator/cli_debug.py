"""Commands that look into past runs: replay, explain, diff, lineage. They read the log and change nothing; nothing is asked, nothing costs.

What they do is in `cli_look` and `cli_past`, which do without Typer; here is how they are asked.
"""

from __future__ import annotations

from typing import Annotated, Final

import typer

from crewlog.orchestrator import cli_look, cli_past
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, run_async

_RUN_HELP: Final = "Id of the run, or its first characters; - or @last for the one submitted last; or a file that `export` wrote."
RecordedRun = Annotated[str, typer.Argument(metavar="RUN|FILE", help=_RUN_HELP)]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (replay, explain, diff, lineage):
        app.command()(run_async(command))


async def replay(
    run: RecordedRun = "-",
    verify: Annotated[bool, typer.Option("--verify", help="Derive every decision and model request again and compare.")] = False,
    to: Annotated[str | None, typer.Option("--to", metavar="N", help="Show what was known behind the event with index N, or @N for position N.")] = None,
    step: Annotated[bool, typer.Option("--step", help="Show what was known behind each event, one after the other.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Send the replay to the tracing tool, as a trace linked to the original.")] = False,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="With --to: also what the models thought.")] = False,
    subject: Annotated[str | None, typer.Option("--subject", help="Publish the events again, with their timing, to this subject of NATS.")] = None,
    speed: Annotated[float | None, typer.Option("--speed", min=0.001, help="With --subject: how many times as fast as it happened.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Fold the recorded events of a run again, or publish them again: no model, no tool, no cost."""
    return await cli_past.replay(run, verify=verify, to=to, step=step, trace=trace, reasoning=reasoning, subject=subject, speed=speed, home=home, output=output)


async def explain(
    event: Annotated[
        str, typer.Argument(metavar="EVENT", help="Position in the log, event id or its first characters, RUN:INDEX or RUN@POSITION; FILE:INDEX.")
    ],
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Also what the models thought.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say why an event happened, what it led to, and what whoever decided had in front of them."""
    await cli_look.explain(event, reasoning=reasoning, home=home, output=output)


async def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run or an exported file; RUN:INDEX or RUN@POSITION is the run as it was then.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Compare two runs step by step; ends with code 1 when they differ."""
    return await cli_past.diff(a, b, home=home, output=output)


async def lineage(
    run: RecordedRun = "-",
    sentence: Annotated[str | None, typer.Option("--sentence", metavar="TEXT", help="A sentence of the answer, or of something that was sent.")] = None,
    artifact: Annotated[str | None, typer.Option("--artifact", metavar="NAME", help="A file that a task made: its name or hash.")] = None,
    effect: Annotated[str | None, typer.Option("--effect", metavar="ID", help="Something done outside: its idempotency key or call id.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say which source led to the answer, a sentence of it, a file or an effect, and how sure that is."""
    await cli_past.lineage(run, sentence=sentence, artifact=artifact, effect=effect, home=home, output=output)
