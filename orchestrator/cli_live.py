"""How runs look in a terminal: a live tree while one works, its screen when it has ended, and approvals."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.cli_output import print_lines, printable, say, stderr_console
from crewlog.orchestrator.cli_run import ICONS, elapsed, short_time
from crewlog.orchestrator.event_text import event_line
from crewlog.projections.query_rows import ApprovalView, RunView, TaskView
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.task_events import TERMINAL_TYPES
from crewlog.schemas.text import shorten
from crewlog.schemas.usage import format_usd

if TYPE_CHECKING:
    from rich.tree import Tree

    from crewlog.events.bus import Message
    from crewlog.orchestrator.client import Client
    from crewlog.projections.queries import Queries

WRITTEN_CHARS_MAX: Final = 70
"""What is shown behind a task: why it waits, or the end of what its model is writing."""
WIDE_MIN: Final = 72
"""In a narrower terminal a task has its name, its time and what it waits for."""
DRAW_AT_MOST_S: Final = 0.2
"""Shortest time between two looks at the views while many events come, in seconds."""


class Piece(msgspec.Struct):
    """A piece of an answer that is being written, by the id of its call."""

    call_id: str
    text: str


class Followed(NamedTuple):
    """How far a run was followed, and the last position seen: its ending (`completed`, `failed`, `cancelled`), or `waiting` for a person, or
    `held` by a budget, or `quarantined` when only its end is kept back."""

    ending: str
    position: int


def redraws() -> bool:
    """Say whether a tree that changes in place can be shown; on a dumb terminal nothing would be seen before the end."""
    return sys.stderr.isatty() and not stderr_console().is_dumb_terminal


async def follow(client: Client, run_id: RunId, *, live: bool, stop_on_approval: bool = False, after: int = 0, types: frozenset[str] | None = None) -> Followed:
    """Show a run until it ends, or a budget holds it, or it needs a person and that is to be the end of it.

    Args:
        live: draw a tree that changes in place; else print one line per event. Both go to stderr.
        types: only lines for events of these types; None for all.
        after: position up to which everything was shown before.
    """
    tree = _LiveTree(client.queries(), run_id) if live else None
    drawing = asyncio.create_task(tree.draw()) if tree else None
    hearing = await client.hear(run_id, tree.heard) if tree else None
    first_us, ending, position = 0, "running", after
    try:
        async for recorded in client.events(run_id, follow=True):
            first_us = first_us or recorded.occurred_us
            if recorded.stream == run_stream(run_id) and recorded.type in TERMINAL_TYPES:
                ending = recorded.type.removeprefix("Run").lower()
            if tree:
                tree.changed.set()
            elif recorded.position > after and (types is None or recorded.type in types):
                say(event_line(recorded, first_us))
            position = max(position, recorded.position)
            if stop_on_approval and recorded.type == "TaskSuspended" and recorded.position > after:
                await client.asked(run_id)  # what comes next looks at the views, which may not have heard of it
                return Followed("waiting", position)
            if recorded.type == "RunHeld" and await client.held(recorded):
                return Followed("held", position)
            if recorded.type == "ResultsHeld" and await client.held(recorded):
                return Followed("quarantined", position)
        await client.ended(run_id)
    finally:
        if hearing:
            await hearing.stop()
        if tree and drawing:
            tree.finished = True
            tree.changed.set()
            await drawing
    return Followed(ending, position)


class _LiveTree:
    """The tasks of a run as a tree on stderr, drawn again whenever something has changed."""

    def __init__(self, views: Queries, run_id: RunId) -> None:
        self.changed = asyncio.Event()
        self.finished = False
        self._views, self._run_id = views, run_id
        self._clock = SystemClock()
        self._run: RunView | None = None
        self._tasks: Sequence[TaskView] = ()
        self._written: dict[str, Piece] = {}

    async def heard(self, message: Message) -> None:
        """Take the next piece of an answer; of each task only the end of its last one is kept. What is no such piece is let go."""
        try:
            piece = msgspec.json.decode(message.data, type=Piece)
        except msgspec.MsgspecError:
            return
        task_id = message.subject.rpartition(".")[2]
        before = self._written.get(task_id)
        text = before.text + piece.text if before is not None and before.call_id == piece.call_id else piece.text
        self._written[task_id] = Piece(piece.call_id, text[-WRITTEN_CHARS_MAX:])

    async def draw(self) -> None:
        from rich.live import Live

        with Live(get_renderable=self._render, console=stderr_console(), refresh_per_second=4) as live:
            while not self.finished:
                await self.changed.wait()
                self.changed.clear()
                await self._look()
                live.refresh()
                await asyncio.sleep(DRAW_AT_MOST_S)
            await self._look()

    async def _look(self) -> None:
        with suppress(NotFound):  # the views may not have heard of a run that is new
            self._run, self._tasks = await self._views.run(str(self._run_id)), await self._views.tasks(self._run_id)

    def _render(self) -> Tree:
        from rich.text import Text
        from rich.tree import Tree

        run, now = self._run, datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        if run is None:
            return Tree(Text(f"run {str(self._run_id)[:8]}"))
        took, is_wide = elapsed(run.submitted_at, run.finished_at or now), stderr_console().width >= WIDE_MIN
        root = Tree(Text.assemble((f"run {str(run.run_id)[:8]} ", "bold"), (run.status, ICONS.get(run.status, ("", "cyan"))[1]), f"  {took}"))
        for scope in run.warnings:
            root.add(Text(f"! passed its soft limit, with what its calls had reserved: {scope}", style="yellow"))
        for task in self._tasks:
            icon, style = ICONS.get(task.status, ("·", "dim"))
            began = task.started_at or task.dispatched_at
            took = elapsed(began, task.finished_at or now) if began else ""
            counts = f"{task.turns} turns, {task.tool_calls} calls" if task.turns else ""
            cost = format_usd(task.cost_micro_usd) if task.cost_micro_usd else ""
            about = f"{task.kind:<12} {took:>7}  {counts:<20} {cost}" if is_wide else f"{took:>7} "
            line = Text.assemble((f"{icon} ", style), (f"{task.key:<{16 if is_wide else 12}} ", "bold"), about)
            line.append(self._note(task), style="dim")
            line.no_wrap = True
            root.add(line)
        return root

    def _note(self, task: TaskView) -> str:
        """Say what a task waits for: while its model writes, what it writes."""
        written = self._written.get(str(task.task_id))
        if written is not None and "model call" in (task.waiting_reason or ""):
            return f"✎ {printable(written.text)}"
        return shorten(task.waiting_reason or task.error or "", WRITTEN_CHARS_MAX)


def show_approval(approval: ApprovalView, arguments: str) -> None:
    """Print one question to a person: the action first, then its arguments as they would be used, why, and how to answer."""
    from crewlog.agents.escalation import ESCALATE

    short = str(approval.approval_id)[:8]
    asks = f"did {approval.tool} of {approval.kind} happen?" if approval.question else f"{approval.kind} wants to run {approval.tool}"
    print_lines([f"{short}  {asks}   run {str(approval.run_id)[:8]}, until {short_time(approval.expires_at)}"])
    for name, value in json.loads(arguments).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *rest = shown.splitlines() or [""]
        print_lines([f"    {name}: {printable(first)}"])
        for line in rest:
            print_lines([f"        {printable(line)}"])
    print_lines([f"    why: {approval.reason}"])
    if approval.question:
        say(f"    answer: crewlog resolve {short} happened   or   did-not-happen (it runs again)   or   give-up")
    elif approval.tool == ESCALATE:
        say(f"    answer: crewlog approve {short} --note ANSWER   or   crewlog deny {short} --note REASON")
    else:
        say(f"    answer: crewlog approve {short}   or   crewlog deny {short} --note REASON")
