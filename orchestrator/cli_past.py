"""Going through recorded runs: what `replay`, `diff` and `lineage` do. Like `cli_look` they go to the log straight, and load only what they need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from crewlog.orchestrator.cli_look import opened, whole_run
from crewlog.orchestrator.cli_output import Exit, Output, complain, load_config, plain, print_json, print_json_line, print_lines, say

if TYPE_CHECKING:
    from uuid import UUID

    from crewlog.events.store import EventStore
    from crewlog.orchestrator.run_history import RunHistory
    from crewlog.schemas.ids import RunId


async def replay(
    run: str = "-",
    *,
    verify: bool = False,
    to: str | None = None,
    step: bool = False,
    trace: bool = False,
    reasoning: bool = False,
    subject: str | None = None,
    speed: float | None = None,
    home: Path | None = None,
    output: Output = Output.TABLE,
) -> int:
    """Fold a run again and print what came of it, or what was known behind one event or each; or publish its events again."""
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
    from crewlog.orchestrator.replay import replay as replay_run

    async with opened(run, home) as (store, run_id):
        report = await replay_run(store, run_id, verify=verify)
        if trace:
            say(f"trace {(await _send_trace(store, run_id, home)).hex}")
    if output is Output.JSON:
        print_json(plain(report))
    else:
        made = f"{report.events} events in {report.streams} streams, {report.model_calls} recorded model calls, 0 made"
        print_lines([made, f"state hash {report.state_hash}"])
        for type_, count in report.unknown.items():
            say(f"passed over: {count} of type {type_}, which this program cannot read")
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
    if not (text.isascii() and text[1:].isdigit()):
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


async def diff(a: str, b: str, *, home: Path | None = None, output: Output = Output.TABLE) -> int:
    """Print how two runs, or moments of runs, differ."""
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


async def lineage(
    run: str = "-",
    *,
    sentence: str | None = None,
    artifact: str | None = None,
    effect: str | None = None,
    home: Path | None = None,
    output: Output = Output.TABLE,
) -> None:
    """Print which sources led to the answer, or to the one thing that is asked for."""
    from crewlog.orchestrator import lineage as trace
    from crewlog.orchestrator.lineage_text import brief_lines, lineage_lines
    from crewlog.orchestrator.run_history import refuse_erased
    from crewlog.schemas.errors import ContractError

    if sum(given is not None for given in (sentence, artifact, effect)) > 1:
        raise ContractError("--sentence, --artifact and --effect exclude each other: ask for one thing at a time")
    history = await whole_run(run, home)
    refuse_erased(history, "traced back to sources")
    if sentence is not None:
        found = [trace.lineage_of_sentence(history, sentence)]
    elif artifact is not None:
        found = [trace.lineage_of_artifact(history, artifact)]
    elif effect is not None:
        found = [trace.lineage_of_effect(history, effect)]
    else:
        found = trace.lineage_of_answer(history)
    if output is Output.JSON:
        print_json([plain(each) for each in found])
        return
    is_one = len(found) == 1 and (sentence or artifact or effect)
    print_lines(line for each in found for line in (lineage_lines(each) if is_one else brief_lines(each)))
    if not found:
        print_lines(["the run has no answer; ask for a file or an effect"])
