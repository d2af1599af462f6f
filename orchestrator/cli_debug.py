"""Commands that look into past runs: show --as, replay, explain, diff. They read the log and change nothing; nothing is asked, nothing costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator import cli_look
from crewlog.orchestrator.cli_look import opened, whole_run
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, load_config, plain, print_json, print_json_line, print_lines, run_async, say

if TYPE_CHECKING:
    from uuid import UUID

    from crewlog.events.store import EventStore
    from crewlog.orchestrator.run_history import RunHistory
    from crewlog.schemas.ids import RunId


_RUN_HELP: Final = "Id of the run, or its first characters; - or @last for the one submitted last; or a file that `export` wrote."
RecordedRun = Annotated[str, typer.Argument(metavar="RUN|FILE", help=_RUN_HELP)]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (replay, explain, diff):
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
    from crewlog.orchestrator.replay import replay as replay_run
    from crewlog.schemas.errors import ContractError

    if subject is None and speed is not None:
        raise ContractError("--speed is how fast events are published again: say where to with --subject, such as --subject replay.mine")
    if subject is not None:
        from crewlog.orchestrator.cli_republish import publish_again

        await publish_again(run, subject, 1.0 if speed is None else speed, home)
        return Exit.OK
    if to is not None or step:
        history = await whole_run(run, home)
        if to is not None:
            _show_moment(history, _index(history, to), output, with_reasoning=reasoning)
        else:
            _step_through(history, output)
        return Exit.OK
    async with opened(run, home) as (store, run_id):
        report = await replay_run(store, run_id, verify=verify)
        if trace:
            say(f"trace {(await _send_trace(store, run_id, home)).hex}")
    if output is Output.JSON:
        print_json(plain(report))
    else:
        typer.echo(f"{report.events} events in {report.streams} streams, {report.model_calls} recorded model calls, 0 made")
        typer.echo(f"state hash {report.state_hash}")
        for type_, count in report.unknown.items():
            say(f"passed over: {count} of type {type_}, which this program does not know")
    if report.divergence is not None:
        complain("the log does not follow from itself", why=str(report.divergence))
        return Exit.RUN_FAILED
    if report.erased_us:
        from crewlog.orchestrator.run_history import erased_text

        say(f"{erased_text(report.erased_us)}: its events are all there and in order, what was said in them is gone, and nothing is derived from them again")
    elif verify:
        say("identical: every decision and every model request follows from the events before it")
    return Exit.OK


async def _send_trace(store: EventStore, run_id: RunId, home: Path | None) -> UUID:
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.replay_trace import send_replay

    return await send_replay(load_config(home), store, run_id, SystemClock())


def _index(history: RunHistory, given: str) -> int:
    from crewlog.orchestrator.run_history import parse_place
    from crewlog.schemas.errors import ContractError

    text = given if given.startswith("@") else f":{given}"
    if not text[1:].isdigit():
        raise ContractError(f"--to {given}: expected the index of an event in its run, such as 12, or a position of the log, such as @4711")
    return history.index_of(parse_place(f"{str(history.run_id)[:8]}{text}"))


def _show_moment(history: RunHistory, index: int, output: Output, *, with_reasoning: bool) -> None:
    from crewlog.orchestrator.debug_text import conversation_lines, moment_lines
    from crewlog.orchestrator.event_text import event_json
    from crewlog.orchestrator.moments import conversation_at, describe_moment, moment_at

    moment = moment_at(history, index)
    described, talk = describe_moment(history, moment), conversation_at(history, moment, with_reasoning=with_reasoning)
    if output is Output.JSON:
        print_json({"event": event_json(moment.recorded, with_reasoning=with_reasoning), **described, "conversation": plain(talk)})
        return
    print_lines(moment_lines(moment, described, history.events[0].occurred_us))
    if talk is not None:
        print_lines(conversation_lines(f"conversation of task {described['task']['key']}", talk))


def _step_through(history: RunHistory, output: Output) -> None:
    """Show moment after moment; in a terminal, Enter goes on and q ends."""
    import sys

    from crewlog.orchestrator.debug_text import moment_lines
    from crewlog.orchestrator.event_text import event_json
    from crewlog.orchestrator.moments import describe_moment, moments

    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for moment in moments(history):
        described = describe_moment(history, moment)
        if output is Output.JSON:
            print_json_line({"event": event_json(moment.recorded, with_reasoning=False), **described})
            continue
        print_lines(moment_lines(moment, described, history.events[0].occurred_us))
        if is_terminal and moment.index < len(history.events):
            sys.stdout.flush()
            sys.stderr.write("Enter: next, q: end ")
            sys.stderr.flush()
            if sys.stdin.readline().strip().lower() == "q":
                return


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
    import shutil

    from crewlog.orchestrator.diff_text import diff_lines
    from crewlog.orchestrator.run_diff import diff_runs
    from crewlog.orchestrator.run_history import parse_place

    runs = []
    for place in map(parse_place, (a, b)):
        history = await whole_run(place.name, home)
        runs.append(history.until(history.index_of(place)))
    found = diff_runs(*runs)
    if output is Output.JSON:
        print_json(plain(found))
    else:
        print_lines(diff_lines(found, shutil.get_terminal_size((160, 24)).columns))
    return Exit.OK if found.is_identical else Exit.RUN_FAILED
