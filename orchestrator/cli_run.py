"""How a run looks to people: what came of it, what is in its way, how long it took. There before Typer is, see `cli_quick`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from crewlog.orchestrator.cli_output import Output, plain, print_json, print_lines, printable, say
from crewlog.schemas.text import counted
from crewlog.schemas.usage import format_usd

if TYPE_CHECKING:
    from crewlog.projections.query_rows import ControlView, HoldView, RunView, TaskView

ICONS: Final[Mapping[str, tuple[str, str]]] = {
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
"""What stands in front of a run or task in its state, and the colour of that."""

_PROVIDERS: Final = "see which models are not asked for a while: crewlog providers; CREWLOG_MODELS may name others behind them: A > B"
AFTER_ERROR: Final[Mapping[str, str]] = {
    "model_auth": "correct the key of that provider in the environment of `crewlog up`, start the crew again, and submit the goal again",
    "model_bad_request": "the request itself is refused, so no other model was asked: correct the tool or output_schema it names; see it: crewlog explain",
    "model_billing": "pay that provider, or name others behind it in CREWLOG_MODELS: A > B; then submit the goal again",
    "model_malformed": "is the address in CREWLOG_MODELS that of a model API? see what was answered: crewlog events",
    "model_not_found": "name a model that the provider has, at its own address, in CREWLOG_MODELS; start the crew again, and submit the goal again",
    "output_invalid": "ask for less, or name a stronger model in CREWLOG_MODELS; see what was answered: crewlog show --as conversation",
    "unpriced": "name its price in CREWLOG_PRICES, or set CREWLOG_UNPRICED=allow; start the crew again, and submit the goal again",
    **dict.fromkeys(
        (
            *("model_breaker_open", "model_connection", "model_cut", "model_overloaded"),
            *("model_rate_limit", "model_server", "model_timeout", "model_unavailable"),
        ),
        _PROVIDERS,
    ),
}
"""What a person can do about a run that failed, by the code of its error."""


def headline(run: RunView) -> str:
    """Return the first line about a run that has ended or goes on."""
    took = f" in {elapsed(run.submitted_at, run.finished_at)}" if run.finished_at else ""
    icon = ICONS.get(run.status, ("▶", ""))[0]
    done = f"{run.tasks_done}/{counted(run.tasks_total, 'task')}"
    counts = " · ".join((counted(run.agents, "agent"), done, counted(run.turns, "turn"), counted(run.tool_calls, "tool call")))
    return f"{icon} run {run.run_id}  {run.status}{took}   {counts}"


def print_run(run: RunView, tasks: Sequence[TaskView], answer: str, controls: Sequence[ControlView], output: Output) -> None:
    """Print a run, its tasks and its answer: as one JSON document, or for people."""
    if output is Output.JSON:
        print_json({**plain(run), "answer": answer, "tasks": plain(tasks)})
    else:
        show_run(run, tasks, answer, controls)


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
        say(f"  passed its soft limit, with what its calls had reserved: {scope}")
    if run.simulated:
        say("  offline model: tool results are real, the wording is made by rules (simulated)")
    print_lines([*([answer.rstrip()] if answer else []), *sources(tasks, answer)])
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


def hold_text(hold: HoldView) -> str:
    """Say in one line which budget holds a run and what lets it go on."""
    used, limit, needed = map(format_usd, (hold.used_micro_usd, hold.limit_micro_usd, hold.needed_micro_usd))
    return f"held by budget {hold.scope}: {used} of {limit} used, {needed} needed; go on with: crewlog budget raise {hold.scope} --hard USD --reason WHY"


def control_line(control: ControlView, *, results_held: bool = False) -> str:
    """Say in one line what is in force, by whom since when, and what takes it back."""
    noun, _, name = control.scope.partition("/")
    short = name[:8] if noun == "run" else name
    named = short if noun == "run" else f"--{noun} {name}"
    what, undo = ("paused", "resume") if control.measure == "pause" else ("in quarantine", "release")
    because = f" ({control.reason})" if control.reason else ""
    held = ", and results are held" if results_held else ""
    return printable(f"{noun} {short} is {what} by {control.actor} since {_time(control.since_at)}{because}{held}; {undo} it: crewlog {undo} {named}")


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


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
