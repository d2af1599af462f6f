"""Commands about runs: submit, watch, runs, show, events, why."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from crewlog.orchestrator.cli_control import control_lines
from crewlog.orchestrator.cli_debug import RecordedRun
from crewlog.orchestrator.cli_look import View, is_file, list_events, look
from crewlog.orchestrator.cli_options import HomeOption, OutputOption, given_path
from crewlog.orchestrator.cli_output import (
    Detached,
    Exit,
    Output,
    complain,
    load_config,
    plain,
    print_json,
    print_json_line,
    print_lines,
    print_rows,
    run_async,
    say,
)

if TYPE_CHECKING:
    from crewlog.events.config import Config
    from crewlog.orchestrator.client import Client, Submitted, TaskFields
    from crewlog.orchestrator.client_why import Explained
    from crewlog.schemas.ids import RunId
    from crewlog.schemas.task import AgentTask

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, or its first characters; - or @last for the one submitted last.")]
TimeoutOption = Annotated[float | None, typer.Option("--timeout", min=0.0, help="Wait at most this many seconds; the run goes on.")]
RunStatus = Literal["planning", "running", "paused", "held", "quarantined", "completed", "failed", "cancelled"]
_ENDINGS = {"completed": Exit.OK, "failed": Exit.RUN_FAILED, "cancelled": Exit.RUN_FAILED, "waiting": Exit.WAITING_FOR_PERSON, "held": Exit.WAITING_FOR_PERSON}
_ENDINGS["quarantined"] = Exit.WAITING_FOR_PERSON
_ATTACH: Final = "A file or folder to work on; repeatable."


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (submit, watch, runs, show, events, why):
        app.command()(run_async(command))


async def submit(
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What the crew shall do; with --file - or a path, leave it out.")] = "",
    *,
    attach: Annotated[list[Path] | None, typer.Option("--attach", "-a", metavar="PATH", parser=given_path, help=_ATTACH)] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="An AgentTask or a plan as JSON instead of a goal; - reads stdin.")] = None,
    kind: Annotated[str, typer.Option("--type", help="Send the goal to one kind of agent, without a plan.")] = "run",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Show the work and wait until the run has ended.")] = False,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="The most that may be spent, such as 0.50; then the run is held.")] = None,
    soft: Annotated[str | None, typer.Option("--soft", metavar="USD", help="Warn from here on; without it, from 70 % of the budget.")] = None,
    limit: Annotated[list[str] | None, typer.Option("--limit", metavar="NAME=N", help="Where a task stops, as turns_max=80; repeatable.")] = None,
    surface: Annotated[str | None, typer.Option("--surface", help="Where the work comes from; the operator may set budgets for each.")] = None,
    route: Annotated[bool, typer.Option("--route", help="Ask a router first: what one specialist can do alone needs no plan.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let tools with consequences run without asking.")] = False,
    fail_on_approval: Annotated[bool, typer.Option("--fail-on-approval", help="With --wait: end with code 6 when a person is needed.")] = False,
    timeout: TimeoutOption = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Hand in a goal, with files."""
    from crewlog.orchestrator.cli_limits import read_limits
    from crewlog.orchestrator.client import Client

    config = load_config(home)
    what = _read_submission(goal, file, config)
    fields: TaskFields = {**task_fields(budget, soft, surface, yes=yes, route=route), **read_limits(limit or (), what)}
    async with Client.connect(config) as client:
        submitted = await _hand_in(client, await client.prepare(what, attachments=attach or (), kind=kind, **fields), home)
        if not wait:
            if output is Output.JSON:
                print_json(plain(submitted))
            else:
                typer.echo(submitted.run_id)
                say(f"{submitted.status}; follow it with: crewlog watch {str(submitted.run_id)[:8]}")
            return Exit.OK
        return await follow_run(client, submitted.run_id, home, output, timeout=timeout, fail_on_approval=fail_on_approval)


def task_fields(budget: str | None, soft: str | None, surface: str | None, *, yes: bool, route: bool) -> TaskFields:
    """Read the options that say on what terms a task is handed in.

    Raises:
        ContractError: an amount is none.
    """
    from crewlog.orchestrator.cli_budget import read_budget
    from crewlog.schemas.parse import parse
    from crewlog.schemas.task import Budget

    fields: TaskFields = {}
    if yes:
        fields["auto_approve"] = True
    if amounts := read_budget(budget, soft):
        fields["budget"] = parse(Budget, amounts, "this budget cannot be set")
    if surface is not None:
        fields["surface"] = surface
    if route:
        fields["routing"] = "router"
    return fields


async def _hand_in(client: Client, task: AgentTask, home: Path | None) -> Submitted:
    """Submit a task. A Ctrl-C meanwhile waits for the answer: once it was sent, the run may be in the log, and one must be able to find it."""
    sending = asyncio.create_task(client.submit(task))
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        raise Detached(_come_back((await sending).run_id, home)) from None


def _come_back(run_id: RunId, home: Path | None) -> str:
    return f"crewlog watch {str(run_id)[:8]}" + (f" --home {home}" if home else "")


async def watch(
    run: RunArgument = "-",
    fail_on_approval: Annotated[bool, typer.Option("--fail-on-approval", help="End with code 6 when a person is needed.")] = False,
    timeout: TimeoutOption = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Show a run at work until it ends. Ctrl-C leaves it running."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        return await follow_run(client, await client.find_run(run), home, output, timeout=timeout, fail_on_approval=fail_on_approval)


async def follow_run(client: Client, run_id: RunId, home: Path | None, output: Output, *, timeout: float | None, fail_on_approval: bool) -> int:
    """Show a run at work until it ends, then what came of it; returns the exit code for that."""
    from crewlog.orchestrator.cli_live import follow, redraws

    come_back = _come_back(run_id, home)
    try:
        async with asyncio.timeout(timeout):
            ending, _ = await follow(client, run_id, live=redraws(), stop_on_approval=fail_on_approval)
    except asyncio.CancelledError:
        raise Detached(come_back) from None
    except TimeoutError:
        complain(f"run {run_id} has not ended within {timeout:g} s; it goes on", next_step=come_back)
        return Exit.TIMEOUT
    if ending == "held":
        complain(f"run {run_id} waits for money", why=f"crewlog budget show {str(run_id)[:8]} says how much", next_step=come_back)
    if ending == "quarantined":
        complain(f"run {run_id} is done, and its results are held in quarantine", next_step=f"crewlog release {str(run_id)[:8]}; {come_back}")
    if ending == "waiting":
        complain(f"run {run_id} waits for a person", next_step="crewlog approvals; crewlog approve ID")
    await _show(client, run_id, output)
    return _ENDINGS[ending]


async def _show(client: Client, run_id: RunId, output: Output) -> None:
    from crewlog.orchestrator.cli_run import print_run

    run, tasks = await client.run(run_id), await client.tasks(run_id)
    print_run(run, tasks, await client.answer(run), await client.queries().controls(run_id), output)


async def runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most this many, the latest first.")] = 20,
    status: Annotated[RunStatus | None, typer.Option("--status", help="Only runs with this status.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only runs of this user.")] = None,
    trials: Annotated[bool, typer.Option("--trials", help="Also those that only repeat others: evaluations and shadows.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List runs."""
    from crewlog.orchestrator.cli_run import elapsed, short_time
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.text import shorten
    from crewlog.schemas.usage import format_usd

    async with Client.connect(load_config(home)) as client:
        found = await client.runs(limit=limit, status=status, user=user, trials=trials)
    if output is Output.JSON:
        print_json(plain(found))
        return
    rows = [
        {
            "run": str(r.run_id)[:8],
            "status": r.status + (" (asks)" if r.approvals_pending else "") + (" (passed a soft limit)" if r.warnings and r.hold is None else ""),
            "tasks": f"{r.tasks_done}/{r.tasks_total}",
            "cost": format_usd(None if r.unpriced_calls else r.cost_micro_usd),
            "submitted": short_time(r.submitted_at),
            "took": elapsed(r.submitted_at, r.finished_at),
            "goal": shorten(" ".join(r.goal.split()), 70),
        }
        for r in found
    ]
    headings = {"RUN": "run", "STATUS": "status", "TASKS": "tasks", "COST": "cost", "SUBMITTED": "submitted", "TOOK": "took", "GOAL": "goal"}
    whose = f" of {user}" if user else ""
    empty = f"no run{whose} is {status}" if status else f"no runs{whose}" if user else "no runs yet; start one: crewlog submit 'GOAL' --wait"
    print_rows(rows, headings, output, empty=empty, right=frozenset({"TASKS", "COST", "TOOK"}), cut=frozenset({"GOAL"}))


async def show(
    run: RecordedRun = "-",
    view: Annotated[View, typer.Option("--as", help="The answer; or what happened, told in one of four ways.")] = View.ANSWER,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="With --as conversation or events: also what the models thought.")] = False,
    save: Annotated[Path | None, typer.Option("--save", metavar="PATH", parser=given_path, help="Also write the run's files into this folder.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one run: its answer, tasks and files; or how it came to them."""
    if save is not None:
        for path in await _saved(run, save, home):
            say(f"wrote {path}")
    await look(run, view, reasoning=reasoning, home=home, output=output)


async def _saved(run: str, folder: Path, home: Path | None) -> list[Path]:
    """Write what a run made into a folder, from the crew's store or from an exported file."""
    if is_file(run):
        from crewlog.orchestrator.bundle import read_bundle
        from crewlog.orchestrator.saved_files import save_bundled

        return await save_bundled(read_bundle(Path(run)), folder)
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        return await client.save(await client.run(run), folder)


async def events(
    run: RunArgument = "-",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="With -o json: also what the models thought.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the events of a run; with -o json one per line."""
    if not follow:
        await list_events(run, reasoning=reasoning, home=home, output=output)
        return
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.event_text import event_json, event_line

    async with Client.connect(load_config(home)) as client:
        run_id = await client.find_run(run)
        first_us = 0
        async for recorded in client.events(run_id, follow=True):
            first_us = first_us or recorded.occurred_us
            if output is Output.JSON:
                print_json_line(event_json(recorded, with_reasoning=reasoning))
            else:
                print_lines([event_line(recorded, first_us)])


async def why(
    what: Annotated[str, typer.Argument(metavar="RUN|TASK", help="Id of a run or task, or its first characters.")] = "-",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what a run or task waits for: one reason for each task, and what would end it."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.waits.why(what)
        lines = await control_lines(client, what, [explained.task for explained in found if explained.task is not None])
    if output is Output.JSON:
        print_json(list(map(_waiting, found)))
        return
    for line in lines:
        print_lines([line])
    if not found and not lines:
        say("nothing waits: every task has ended")
    for explained in found:
        task, wait = explained.task, explained.wait
        if lines and wait.reason == "quarantine":
            continue  # the line above says it, and by whom
        print_lines([f"{f'{task.key} ({task.kind})' if task else f'run {str(explained.run_id)[:8]}'}: {wait.detail}"])
        print_lines([f"    ended by: {wait.ends}"])


def _waiting(explained: Explained) -> dict[str, Any]:
    task, wait = explained.task, explained.wait
    fields = ("task_id", "run_id", "key", "kind", "status", "waiting_reason", "worker", "attempt")
    known = {"run_id": str(explained.run_id)} if task is None else {f: plain(getattr(task, f)) for f in fields}
    return {**known, "reason": wait.reason, "detail": wait.detail, "ended_by": wait.ends, "until": plain(wait.until), "workers": list(explained.workers)}


def _read_submission(goal: str, file: Path | None, config: Config) -> Any:
    """Return what to submit: the goal, or what a JSON file holds. A task in a file needs no id, tenant and user: this command knows them."""
    import json

    from crewlog.events.clock import SystemClock
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.parse import parse
    from crewlog.schemas.plan import Plan
    from crewlog.schemas.task import parse_task

    if (file is None) == (not goal.strip()):
        raise ContractError("give either a goal or --file, for example: crewlog submit 'Summarise the table' --attach table.csv")
    if file is None:
        return goal
    text = _text_of(file)
    try:
        given = json.loads(text)
    except RecursionError:
        raise ContractError(f"{file} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ContractError(f"{file} is not JSON: {error}") from None
    if not isinstance(given, dict):
        return parse_task(text)
    if "steps" in given:
        return parse(Plan, given, f"{file} is not a valid plan")
    return parse_task({"task_id": SystemClock().random_id(), "tenant": config.tenant, "user": config.user, **given})


def _text_of(file: Path) -> str:
    """Read a file, or stdin for `-`, as UTF-8, whatever the locale is."""
    from crewlog.schemas.errors import ContractError

    try:
        return (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError:
        raise  # it has an exit code of its own
    except OSError as error:
        raise ContractError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ContractError(f"{file} is not UTF-8 text: {error}") from None
