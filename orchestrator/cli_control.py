"""Commands by which operators steer: pause, resume, quarantine, release, terminate, drain.

Each of the first five is about runs that are named; or about all of a tenant or an agent kind, also what comes later; or, with a condition,
about those open runs that match it now.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, load_config, plain, print_json, print_rows, run_async, say

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from uuid import UUID

    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_control import Steered, Verb
    from crewlog.projections.query_rows import TaskView

SHOWN_MAX: Final = 10
"""Runs that are listed before a question about many."""
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DONE: Final = {"pause": "paused", "resume": "resumed", "quarantine": "in quarantine", "release": "released", "terminate": "terminated"}

_ABOUT: Final[Mapping[Verb, str]] = {
    "pause": "Let what is under way end and nothing new start; deadlines stand still until it is resumed.",
    "resume": "Let what was paused go on where it was.",
    "quarantine": "Let runs finish and keep their results back until they are released.",
    "release": "Let go of results that a quarantine keeps back; a run may be released alone, too.",
    "terminate": "End runs now: model calls are cut off and settled, the runs are cancelled.",
}

RunsArgument = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Ids of runs, or their first characters; - for the newest.")]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", help="All runs of a tenant, also later ones; with a condition, only those.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="KIND", help="All tasks of an agent kind; with a condition, runs that need it.")]
StatusOption = Annotated[list[str] | None, typer.Option("--status", help="Open runs that are planning, running, paused, held or quarantined; repeatable.")]
OlderOption = Annotated[str, typer.Option("--older-than", metavar="TIME", help="Open runs submitted longer ago than 90s, 15m, 2h or 3d.")]
AllOption = Annotated[bool, typer.Option("--all", help="All open runs there are now.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; recorded with it.")]
ActorOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Who wants it; else CREWLOG_USER.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however many runs match.")]


class Choice(NamedTuple):
    """What a command is about, as the command line says it."""

    runs: Sequence[str]
    tenant: str = ""
    kind: str = ""
    status: Sequence[str] = ()
    older_than_s: float | None = None
    every: bool = False

    @property
    def has_condition(self) -> bool:
        """True when the open runs that match now are meant."""
        return bool(self.status) or self.older_than_s is not None or self.every


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for verb, about in _ABOUT.items():
        app.command(verb)(run_async(_steering(verb, about)))
    app.command("cancel", hidden=True)(run_async(_steering("terminate", _ABOUT["terminate"])))  # its name when it was about one run
    app.command()(run_async(drain))


def _steering(verb: Verb, about: str) -> Callable[..., Coroutine[Any, Any, int]]:
    """Make the command of one verb: all of them choose what they are about in the same way."""

    async def command(
        runs: RunsArgument = None,
        *,
        tenant: TenantOption = "",
        kind: KindOption = "",
        status: StatusOption = None,
        older_than: OlderOption = "",
        every: AllOption = False,
        reason: ReasonOption = "",
        actor: ActorOption = "",
        yes: YesOption = False,
        home: HomeOption = None,
        output: OutputOption = Output.TABLE,
    ) -> int:
        choice = Choice(runs or (), tenant, kind, status or (), span_s(older_than), every)
        return await _steer(verb, choice, reason, actor, home, output, yes=yes)

    command.__name__, command.__doc__ = verb, about
    return command


async def drain(
    workers: Annotated[
        list[str] | None, typer.Argument(metavar="[WORKER]...", help="Workers as `crewlog status` lists them, or their first characters.")
    ] = None,
    *,
    kind: Annotated[str, typer.Option("--kind", metavar="KIND", help="All workers of this kind.")] = "",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until they have left.")] = False,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let workers take nothing new, end or hand back what they have, and leave.

    Those of crewlog up stay away until crewlog scale KIND=NUMBER, or the next crewlog up, starts them again.
    """
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_control import wait_gone
    from crewlog.schemas.errors import ContractError, NotFound

    if bool(workers) == bool(kind):
        raise ContractError("name workers or --kind KIND; crewlog status lists those that are up")
    async with Client.connect(load_config(home)) as client:
        there = await client.workers()
        chosen = [w.worker for w in there if w.kind == kind]
        for name in workers or ():
            found = [w.worker for w in there if w.worker.startswith(name)]
            if len(found) != 1:
                raise NotFound("worker", name, candidates=tuple(found))
            chosen += found
        if not chosen:
            raise NotFound("kind (none of its workers is up)", kind)
        told = [{"worker": worker, "changed": await client.control.drain(worker, reason=reason, actor=actor)} for worker in chosen]
        if wait:
            await wait_gone(chosen, client.workers)
    if output is Output.JSON:
        print_json(told)
    else:
        say(f"{', '.join(chosen)} {'left' if wait else 'will leave when what is under way has ended'}")


async def _steer(verb: Verb, choice: Choice, reason: str, actor: str, home: Path | None, output: Output, *, yes: bool) -> int:
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.errors import ContractError

    if choice.runs and choice != Choice(choice.runs):
        raise ContractError("name runs, or say which ones by --tenant, --kind and conditions, not both")
    if not choice.runs and choice == Choice(choice.runs):
        raise ContractError(f"say what to {verb}: RUN, --tenant NAME, --kind KIND, or open runs by --status, --older-than or --all")
    async with Client.connect(load_config(home)) as client:
        if not choice.runs and not choice.has_condition and verb != "terminate":
            return await _scope(client, verb, choice, reason, actor, output)
        if choice.runs:
            run_ids: list[UUID] = [await client.find_run(name) for name in choice.runs]
        else:
            run_ids = await _matching(client, verb, choice, yes=yes)
        done = await client.control.runs(verb, run_ids, reason=reason, actor=actor, tenant=choice.tenant or None)
    return _told(verb, done, output)


async def _scope(client: Client, verb: Verb, choice: Choice, reason: str, actor: str, output: Output) -> int:
    from crewlog.schemas.errors import ContractError

    assert verb != "terminate"
    if choice.tenant and choice.kind:
        raise ContractError("give --tenant or --kind; for runs of one tenant that need one kind, add a condition such as --all")
    if choice.tenant:
        scope, changed = f"tenant {choice.tenant}", await client.control.tenant(verb, choice.tenant, reason=reason, actor=actor)
    else:
        scope, changed = f"kind {choice.kind}", await client.control.kind(verb, choice.kind, reason=reason, actor=actor)
    if output is Output.JSON:
        print_json({"scope": scope.replace(" ", "/"), "changed": changed})
    else:
        say(f"{scope} is {_DONE[verb]}" if changed else f"nothing to {verb}: {scope} was so already")
    return Exit.OK


async def _matching(client: Client, verb: Verb, choice: Choice, *, yes: bool) -> list[UUID]:
    """Find the runs that match, and ask whether they are meant."""
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.text import shorten

    asked = {"tenant": choice.tenant or None, "kind": choice.kind or None, "status": choice.status, "older_than_s": choice.older_than_s}
    found = [run async for run in client.control.find(**asked)]  # type: ignore[arg-type]  # the names say which is which
    if not found:
        say("no open run matches")
    elif not yes:
        for run in found[:SHOWN_MAX]:
            say(f"  {str(run.run_id)[:8]}  {run.status:<11}  {shorten(' '.join(run.objective.split()), 80)}")
        if len(found) > SHOWN_MAX:
            say(f"  and {len(found) - SHOWN_MAX} more")
        if not sys.stdin.isatty():
            raise ContractError(f"{len(found)} runs match, and nobody can be asked: add --yes to {verb} them")
        typer.confirm(f"{verb} {len(found)} run{'' if len(found) == 1 else 's'}?", abort=True, err=True)
    return [run.run_id for run in found]


def _told(verb: Verb, done: Sequence[Steered], output: Output) -> int:
    failed = [run for run in done if run.error]
    if output is Output.JSON:
        print_json(plain(done))
    elif len(done) > 1:
        rows = [{"run": str(run.run_id)[:8], "status": run.status, "note": run.error or ("" if run.changed else "was so already")} for run in done]
        print_rows(rows, {"RUN": "run", "STATUS": "status", "": "note"}, output, empty="")
    else:
        for run in done:
            if not run.error:
                say(f"run {run.run_id} is {_DONE[verb]}" if run.changed else f"nothing to {verb}: run {run.run_id} is {run.status}")
    if len(done) == 1 and failed:
        complain(failed[0].error)
    if any(run.status == "unknown" for run in failed):
        return Exit.NOT_FOUND
    return Exit.CONFLICT if failed else Exit.OK


def span_s(text: str) -> float | None:
    """Read a span of time such as 15m, in seconds; None for an empty text.

    Raises:
        ContractError: it is none.
    """
    from crewlog.schemas.errors import ContractError

    if not text:
        return None
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ContractError(f"{text!r} is no span of time: write 90s, 15m, 2h or 3d")
    return float(match[1]) * _SECONDS[match[2]]


async def control_lines(client: Client, what: str, waiting: Sequence[TaskView]) -> list[str]:
    """Return what is in force for the run that `what` means, or that these tasks belong to."""
    from crewlog.orchestrator.cli_run import control_line
    from crewlog.schemas.errors import NotFound
    from crewlog.schemas.ids import RunId

    try:
        run = await client.run(RunId(waiting[0].run_id) if waiting else what)
    except NotFound:
        return []
    found = await client.queries().controls(run.run_id)
    return [control_line(control, results_held=run.status == "quarantined") for control in found]
