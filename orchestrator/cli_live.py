"""How runs look in a terminal: a live tree while one works, its screen when it has ended, and approvals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import typer

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.cli_budget import hold_text
from crewlog.orchestrator.cli_control import control_line
from crewlog.orchestrator.cli_output import printable, say, stderr_console
from crewlog.orchestrator.event_text import event_line
from crewlog.projections.query_rows import ApprovalView, ControlView, RunView, TaskView
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.task_events import TERMINAL_TYPES
from crewlog.schemas.text import shorten
from crewlog.schemas.usage import format_usd

if TYPE_CHECKING:
    from rich.tree import Tree

    from crewlog.events.bus import Message
    from crewlog.orchestrator.client import Client

WRITTEN_CHARS_MAX: Final = 70
"""What is shown behind a task: why it waits, or the end of what its model is writing."""
DRAW_AT_MOST_S: Final = 0.2
"""Shortest time between two looks at the views while many events come, in seconds."""
_ICONS: Final[Mapping[str, tuple[str, str]]] = {
    "completed": ("✔", "green"),
    "failed": ("✘", "red"),
    "cancelled": ("✘", "red"),
    "suspended": ("⏸", "yellow"),
    "held": ("⏸", "yellow"),
    "paused": ("⏸", "yellow"),
    "quarantined": ("⏸", "yellow"),
    "running": ("▶", "cyan"),
    "retrying": ("↻", "yellow"),
}


AFTER_ERROR: Final[Mapping[str, str]] = {
    "model_auth": "correct the key of that provider in the environment of `crewlog up`, start the crew again, and submit the goal again",
    "model_not_found": "name a model that the provider has in CREWLOG_MODELS, start the crew again, and submit the goal again",
    "model_malformed": "is the address in CREWLOG_MODELS that of a model API? see what was answered: crewlog events",
    "model_timeout": "see which models are not asked for a while: crewlog providers; CREWLOG_MODELS may name others behind them: A > B",
    "model_unavailable": "see which models are not asked for a while: crewlog providers; CREWLOG_MODELS may name others behind them: A > B",
}
"""What a person can do about a run that failed, by the code of its error."""


class Piece(msgspec.Struct):
    """A piece of an answer that is being written, by the id of its call."""

    call_id: str
    text: str


class Followed(NamedTuple):
    """How far a run was followed, and the last position seen: its ending (`completed`, `failed`, `cancelled`), or `waiting` for a person, or
    `held` by a budget, or `quarantined` when only its end is kept back."""

    ending: str
    position: int


async def follow(client: Client, run_id: RunId, *, live: bool, stop_on_approval: bool = False, after: int = 0, types: frozenset[str] | None = None) -> Followed:
    """Show a run until it ends, or a budget holds it, or it needs a person and that is to be the end of it.

    Args:
        live: draw a tree that changes in place; else print one line per event. Both go to stderr.
        types: only lines for events of these types; None for all.
        after: position up to which everything was shown before.
    """
    tree = _LiveTree(client, run_id) if live else None
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

    def __init__(self, client: Client, run_id: RunId) -> None:
        self.changed = asyncio.Event()
        self.finished = False
        self._client, self._run_id = client, run_id
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
        runs = [run for run in await self._client.runs(limit=50) if run.run_id == self._run_id]
        if runs:
            self._run, self._tasks = runs[0], await self._client.tasks(self._run_id)

    def _render(self) -> Tree:
        from rich.text import Text
        from rich.tree import Tree

        run, now = self._run, datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        if run is None:
            return Tree(Text(f"run {str(self._run_id)[:8]}"))
        took = elapsed(run.submitted_at, run.finished_at or now)
        root = Tree(Text.assemble((f"run {str(run.run_id)[:8]} ", "bold"), (run.status, _ICONS.get(run.status, ("", "cyan"))[1]), f"  {took}"))
        for scope in run.warnings:
            root.add(Text(f"! over its soft limit: {scope}", style="yellow"))
        for task in self._tasks:
            icon, style = _ICONS.get(task.status, ("·", "dim"))
            began = task.started_at or task.dispatched_at
            took = elapsed(began, task.finished_at or now) if began else ""
            counts = f"{task.turns} turns, {task.tool_calls} calls" if task.turns else ""
            cost = format_usd(task.cost_micro_usd) if task.cost_micro_usd else ""
            line = Text.assemble((f"{icon} ", style), (f"{task.key:<16} ", "bold"), f"{task.kind:<12} {took:>7}  {counts:<20} {cost}")
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


def headline(run: RunView) -> str:
    """Return the first line about a run that has ended or goes on."""
    took = f" in {elapsed(run.submitted_at, run.finished_at)}" if run.finished_at else ""
    icon = _ICONS.get(run.status, ("▶", ""))[0]
    done = f"{run.tasks_done}/{run.tasks_total} task{'' if run.tasks_total == 1 else 's'}"
    counts = " · ".join((_count(run.agents, "agent"), done, _count(run.turns, "turn"), _count(run.tool_calls, "tool call")))
    return f"{icon} run {run.run_id}  {run.status}{took}   {counts}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def show_run(run: RunView, tasks: Sequence[TaskView], answer: str, controls: Sequence[ControlView] = ()) -> None:
    """Print a run for people: what came of it to stdout, notes about it to stderr."""
    say(headline(run))
    for line in (*_origin(run), *(f"  {control_line(control, results_held=run.status == 'quarantined')}" for control in controls)):
        say(line)
    if run.hold is not None:
        say(f"  {hold_text(run.hold)}")
        if answer:
            say("  what it has so far:")
    for scope in run.warnings:
        say(f"  over its soft limit: {scope}")
    if run.simulated:
        say("  offline model: tool results are real, the wording is made by rules (simulated)")
    if answer:
        typer.echo(answer.rstrip())
    for line in sources(tasks, answer):
        typer.echo(line)
    if run.error:
        say(f"  {run.error_code}: {run.error}")
    if next_step := AFTER_ERROR.get(run.error_code or ""):
        say(f"  next: {next_step}")
    for task in tasks:
        if task.waiting_reason or task.error not in (None, run.error):
            say(f"  {task.key} ({task.kind}): {task.waiting_reason or task.error}")
    for file in run.artifacts:
        say(f"  file  {file.name}  {file.size} bytes  {file.hash[:12]}")
    if run.artifacts:
        say(f"  save the files: crewlog show {str(run.run_id)[:8]} --save FOLDER")


def _origin(run: RunView) -> list[str]:
    if run.parent_run_id is None:
        return []
    how = "goes on from" if run.source == "fork" else f"{run.source} of"
    return [f"  {how} run {run.parent_run_id}; compare them: crewlog diff {str(run.parent_run_id)[:8]} {str(run.run_id)[:8]}"]


def sources(tasks: Iterable[TaskView], answer: str) -> list[str]:
    """Return what the `[n]` in an answer stand for, a line for each; none where the answer names its sources itself.

    Only a step's own words number its citations, so of an answer that puts several side by side each has its list.
    """
    steps = [(task.key, task.outcome) for task in tasks if task.outcome is not None and task.outcome.citations and task.outcome.summary.strip() in answer]
    lines: list[str] = []
    for key, outcome in steps:
        numbered = [(f"[{n}]", citation) for n, citation in enumerate(outcome.citations, start=1)]
        found = [f"{mark} {citation.source}:{citation.line}" for mark, citation in numbered if mark in outcome.summary]
        if found:
            lines += ["", f"Sources of {key}:" if len(steps) > 1 else "Sources:", *map(printable, found)]
    return lines


def show_approval(approval: ApprovalView, arguments: str) -> None:
    """Print one question to a person: the action first, then its arguments as they would be used, why, and how to answer."""
    short = str(approval.approval_id)[:8]
    asks = f"did {approval.tool} of {approval.kind} happen?" if approval.question else f"{approval.kind} wants to run {approval.tool}"
    typer.echo(f"{short}  {asks}   run {str(approval.run_id)[:8]}, until {short_time(approval.expires_at)}")
    for name, value in json.loads(arguments).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *rest = shown.splitlines() or [""]
        typer.echo(f"    {name}: {printable(first)}")
        for line in rest:
            typer.echo(f"        {printable(line)}")
    typer.echo(f"    why: {approval.reason}")
    if approval.question:
        say(f"    answer: crewlog resolve {short} happened   or   did-not-happen (it runs again)   or   give-up")
    else:
        say(f"    answer: crewlog approve {short}   or   crewlog deny {short} --note REASON")


def elapsed(begin: datetime, end: datetime | None) -> str:
    """Show a duration: `3.2 s`, `4m 05s`, `2h 10m`; empty when it has not ended."""
    if end is None:
        return ""
    seconds = max((end - begin).total_seconds(), 0.0)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest:02}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02}m"


def short_time(at: datetime) -> str:
    """Show a time of this machine's zone, to the minute."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M")
