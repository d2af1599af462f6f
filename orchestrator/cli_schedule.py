"""Commands about goals that recur: schedule add, list, pause, resume, run-now, remove."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption, given_path
from crewlog.orchestrator.cli_output import Output, load_config, plain, print_json, print_rows, run_async, say
from crewlog.orchestrator.cli_runs import task_fields

if TYPE_CHECKING:
    from crewlog.orchestrator.client_schedules import ScheduleView


class CatchUpChoice(StrEnum):
    """What happens to due times that passed while nobody was there."""

    NONE = "none"
    ONE = "one"
    ALL = "all"


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule, as `schedule list` prints it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; recorded with the change.")]
ActorOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Who wants it; else CREWLOG_USER.")]
_ATTACH: Final = "A file or folder to work on, as it is now; repeatable."


def register(app: typer.Typer) -> None:
    """Add these commands."""
    schedule = typer.Typer(help="Goals that recur at times of a calendar.", no_args_is_help=True)
    schedule.command("add")(run_async(add))
    schedule.command("list")(run_async(list_schedules))
    schedule.command("pause")(run_async(pause))
    schedule.command("resume")(run_async(resume))
    schedule.command("run-now")(run_async(run_now))
    schedule.command("remove")(run_async(remove))
    app.add_typer(schedule, name="schedule")


async def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: letters, digits, - and _.")],
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What the crew shall do each time.")],
    *,
    cron: Annotated[str, typer.Option("--cron", help="When: minute, hour, day of the month, month, day of the week; such as '0 7 * * mon-fri'.")],
    zone: Annotated[str, typer.Option("--tz", help="The time zone that is meant, such as Europe/Berlin.")] = "UTC",
    catch_up: Annotated[CatchUpChoice, typer.Option("--catch-up", help="After a downtime: run none, the last, or all that were missed.")] = CatchUpChoice.ONE,
    attach: Annotated[list[Path] | None, typer.Option("--attach", "-a", metavar="PATH", parser=given_path, help=_ATTACH)] = None,
    kind: Annotated[str, typer.Option("--type", help="Send the goal to one kind of agent, without a plan.")] = "run",
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="The most that each run may spend, such as 0.50.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let tools with consequences run without asking.")] = False,
    actor: ActorOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let a goal recur; each time it is due a run is submitted."""
    from crewlog.orchestrator.client import Client

    fields = task_fields(budget, None, None, yes=yes, route=False)
    async with Client.connect(load_config(home)) as client:
        task = await client.prepare(goal, attachments=attach or (), kind=kind, **fields)
        added = await client.schedules.add(name, task, cron=cron, zone=zone, catch_up=catch_up.value, actor=actor)
    _told(added, output, f"{name} is due next at {_time(added.next_us, added.zone)}")


async def list_schedules(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """List schedules: when each is due next, and the run it began last."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.schedules.all()
    if output is Output.JSON:
        print_json([plain(schedule) for schedule in found])
        return
    columns = {heading: heading for heading in ("NAME", "STATUS", "CRON", "TZ", "NEXT", "LAST RUN", "GOAL")}
    print_rows([_row(schedule) for schedule in found], columns, output, empty="nothing recurs; see: crewlog schedule add --help", cut=frozenset({"GOAL"}))


async def pause(name: NameArgument, reason: ReasonOption = "", actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Let a schedule rest; runs under way go on."""
    await _change(name, "pause", reason, actor, home, output)


async def resume(name: NameArgument, reason: ReasonOption = "", actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Let a schedule go on; what was due meanwhile is not made up for."""
    await _change(name, "resume", reason, actor, home, output)


async def remove(name: NameArgument, reason: ReasonOption = "", actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """End a schedule; runs under way go on, and the log keeps what it was."""
    await _change(name, "remove", reason, actor, home, output)


async def run_now(name: NameArgument, actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Submit a run of a schedule now, besides those that are due."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        run_id = await client.schedules.run_now(name, actor=actor)
    if output is Output.JSON:
        print_json({"run_id": str(run_id)})
    else:
        typer.echo(run_id)
        say(f"follow it with: crewlog watch {str(run_id)[:8]}")


async def _change(name: str, verb: Literal["pause", "resume", "remove"], reason: str, actor: str, home: Path | None, output: Output) -> None:
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        changed = await client.schedules.change(name, verb, reason=reason, actor=actor)
    _told(changed, output, f"{name} is {changed.status}" + (f", due next at {_time(changed.next_us, changed.zone)}" if changed.next_us else ""))


def _told(schedule: ScheduleView, output: Output, text: str) -> None:
    if output is Output.JSON:
        print_json(plain(schedule))
    else:
        say(text)


def _row(schedule: ScheduleView) -> dict[str, str]:
    from crewlog.schemas.text import shorten

    last = schedule.last
    return {
        "NAME": schedule.name,
        "STATUS": schedule.status,
        "CRON": schedule.cron,
        "TZ": schedule.zone,
        "NEXT": _time(schedule.next_us, schedule.zone),
        "LAST RUN": "-" if last is None else "refused" if last.error else str(last.run_id)[:8],
        "GOAL": shorten(schedule.goal, 60),
    }


def _time(at_us: int | None, zone: str) -> str:
    """Show a time in the zone of its schedule, to the minute."""
    from datetime import datetime
    from zoneinfo import ZoneInfo

    return "-" if at_us is None else f"{datetime.fromtimestamp(at_us / 1e6, ZoneInfo(zone)):%Y-%m-%d %H:%M %Z}"
