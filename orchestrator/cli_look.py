"""Looking at one run: what `show` and `explain` do. They go to the log and the views straight, past NATS, and load nothing that they do not need.

Typer is not loaded here, nor is the whole configuration: starting would take longer than looking. A test names what may be loaded.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewlog.orchestrator.cli_output import Output, json_line, plain, print_json, print_lines, say, terminal_width

if TYPE_CHECKING:
    from crewlog.events.store import EventStore
    from crewlog.orchestrator.run_history import RunHistory
    from crewlog.projections.query_rows import EventView
    from crewlog.schemas.ids import RunId

_ID: Final = re.compile(r"[0-9a-fA-F-]{1,36}")


class View(StrEnum):
    """How a run is shown."""

    ANSWER = "answer"
    CONVERSATION = "conversation"
    TIMELINE = "timeline"
    TREE = "tree"
    EVENTS = "events"


@asynccontextmanager
async def opened(run: str, home: Path | None) -> AsyncIterator[tuple[EventStore, RunId]]:
    """Open the log that holds a run: the crew's, or for the name of a file that `export` wrote, a log in memory."""
    if is_file(run):
        from crewlog.orchestrator.bundle import read_bundle

        bundle = read_bundle(Path(run))
        if bundle.is_redacted:
            say(f"{run} was redacted: it can be looked at, but requests cannot be rebuilt from it, and --verify finds them different")
        yield bundle.store(), bundle.run_id
        return
    from crewlog.orchestrator.log_reader import open_log
    from crewlog.orchestrator.run_names import find_run

    _refuse_nameless(run)
    async with open_log(home) as log:
        run_id = await find_run(log.queries, run)
        yield await log.store(), run_id


def is_file(run: str) -> bool:
    """Say whether a run is given as a file. What could be an id is one: write ./NAME for a file of such a name."""
    return _ID.fullmatch(run) is None and Path(run).is_file()


def _refuse_nameless(run: str) -> None:
    """Refuse what names no file and can be no name of a run: such as the name of a file that is not there."""
    from crewlog.orchestrator.run_names import NEWEST
    from crewlog.schemas.errors import NotFound

    if run not in NEWEST and _ID.fullmatch(run) is None:
        raise NotFound("file or run", run)


async def whole_run(run: str, home: Path | None) -> RunHistory:
    """Read a run with all its texts."""
    from crewlog.orchestrator.run_history import all_payloads, load_shown, with_texts

    async with opened(run, home) as (store, run_id):
        history = await load_shown(store, run_id)
        await _tell_erased(store, history)
        return await with_texts(store, history, all_payloads(history.events))


async def _tell_erased(store: EventStore, history: RunHistory) -> None:
    """Say why texts are missing, if they are."""
    from crewlog.orchestrator.run_history import told_erased

    if (told := await told_erased(store, history)) is not None:
        say(f"run {history.run_id}: {told}")


async def look(run: str = "-", view: View = View.ANSWER, *, reasoning: bool = False, home: Path | None = None, output: Output = Output.TABLE) -> None:
    """Print a run: its answer, or what happened in one of four ways; of a file, which has no views, the tree."""
    if view is not View.ANSWER or is_file(run):
        await _show_as(View.TREE if view is View.ANSWER else view, run, home, output, with_reasoning=reasoning)
        return
    from crewlog.orchestrator.cli_run import print_run
    from crewlog.orchestrator.log_reader import open_log
    from crewlog.orchestrator.run_history import load_history
    from crewlog.orchestrator.run_names import run_once_known
    from crewlog.schemas.ids import Hash, RunId
    from crewlog.schemas.public_form import ERASED

    _refuse_nameless(run)
    async with open_log(home) as log:
        found = await run_once_known(log.queries, run)
        tasks, controls = await log.queries.tasks(found.run_id), await log.queries.controls(found.run_id)
        answer = found.answer or ""
        if found.answer_ref is not None:
            answer = (await (await log.store()).get_blobs([Hash(found.answer_ref)]))[Hash(found.answer_ref)].decode()
        if found.goal == ERASED:
            await _tell_erased(await log.store(), await load_history(await log.store(), RunId(found.run_id)))
        print_run(found, tasks, answer, controls, output)


async def list_events(run: str = "-", *, reasoning: bool = False, home: Path | None = None, output: Output = Output.TABLE) -> None:
    """Print the events of a run, without those that a fork shares: one line each.

    Raises:
        NotFound: the log has no such run.
    """
    from crewlog.orchestrator.event_text import event_json, event_line
    from crewlog.orchestrator.run_history import as_shown
    from crewlog.schemas.errors import NotFound

    async with opened(run, home) as (store, run_id):
        events = [*as_shown(await store.read_run(run_id))]
    if not events:
        raise NotFound("run", str(run_id))
    if output is Output.JSON:
        print_lines(json_line(event_json(recorded, with_reasoning=reasoning)) for recorded in events)
    else:
        print_lines(event_line(recorded, events[0].occurred_us) for recorded in events)


async def _show_as(view: View, run: str, home: Path | None, output: Output, *, with_reasoning: bool) -> None:
    from crewlog.orchestrator import debug_text
    from crewlog.orchestrator.event_text import event_json, event_line
    from crewlog.orchestrator.run_history import load_shown
    from crewlog.orchestrator.run_timeline import timeline
    from crewlog.orchestrator.run_tree import build_tree

    if view is View.CONVERSATION:
        _show_conversations(await whole_run(run, home), output, with_reasoning=with_reasoning)
        return
    async with opened(run, home) as (store, run_id):
        history = await load_shown(store, run_id)
        await _tell_erased(store, history)
    is_json = output is Output.JSON
    match view:
        case View.TIMELINE:
            spans = timeline(history)
            print_json(plain(spans)) if is_json else print_lines(debug_text.timeline_lines(spans, terminal_width()))
        case View.TREE:
            tree = build_tree(history)
            print_json(plain(tree)) if is_json else print_lines(debug_text.tree_lines(tree))
        case _:
            first_us, numbered = history.events[0].occurred_us, enumerate(history.events, 1)
            if is_json:
                print_lines(json_line({"index": n, **event_json(recorded, with_reasoning=with_reasoning)}) for n, recorded in numbered)
            else:
                print_lines(f"{n:>5} {event_line(recorded, first_us)}" for n, recorded in numbered)


def _show_conversations(history: RunHistory, output: Output, *, with_reasoning: bool) -> None:
    from crewlog.agents.recorded_task import conversation
    from crewlog.orchestrator.debug_text import conversation_lines
    from crewlog.orchestrator.run_tree import build_tree

    talks = [
        (task, conversation(history.streams[stream], history.read, with_reasoning=with_reasoning))
        for task in build_tree(history).tasks
        if (stream := next((s for s in history.task_streams if s.endswith(task.task_id)), None)) is not None
    ]
    if output is Output.JSON:
        print_json([{"task_id": task.task_id, "key": task.key, "kind": task.kind, **plain(talk)} for task, talk in talks])
        return
    print_lines(line for task, talk in talks for line in conversation_lines(f"{task.key} ({task.kind}) {task.task_id[:8]}", talk))


async def explain(event: str, *, reasoning: bool = False, home: Path | None = None, output: Output = Output.TABLE) -> None:
    """Print why an event happened, what it led to, and what whoever decided had in front of them.

    Args:
        event: position in the log, event id or the first characters of one, `RUN:INDEX`, `RUN@POSITION` or `FILE:INDEX`.
    """
    from crewlog.orchestrator import explain as explaining
    from crewlog.orchestrator.debug_text import explanation_lines
    from crewlog.orchestrator.run_history import Place, load_shown, parse_place, with_texts
    from crewlog.schemas.errors import ContractError

    place = parse_place(event)
    if place.index is None and place.position is None and not is_file(place.name):
        found = await _find_event(event, home)
        if found.run_id is None:
            raise ContractError(f"event {found.event_id} ({found.type} in {found.stream}) belongs to no run: nothing in a run led to it")
        place = Place(str(found.run_id), position=found.position)
    async with opened(place.name, home) as (store, run_id):
        history = await load_shown(store, run_id)
        await _tell_erased(store, history)
        index = history.index_of(place)
        with_needed = await with_texts(store, history, explaining.needed(history, index))
        told = explaining.explain(with_needed, index, with_reasoning=reasoning)
    if output is Output.JSON:
        print_json(plain(told))
    else:
        print_lines(explanation_lines(told))


async def _find_event(name: str, home: Path | None) -> EventView:
    from crewlog.orchestrator.log_reader import open_log

    async with open_log(home) as log:
        return await log.queries.event(name)
