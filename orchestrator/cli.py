"""The command line: `crewlog`. Commands are thin over the public client; heavy imports happen inside them, so that help is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.models import CommandInfo

from crewlog.orchestrator import (
    cli_bisect,
    cli_budget,
    cli_chaos,
    cli_control,
    cli_costs,
    cli_crew,
    cli_debug,
    cli_dlq,
    cli_effects,
    cli_eval,
    cli_export,
    cli_files,
    cli_fork,
    cli_golden,
    cli_lineage,
    cli_mcp,
    cli_memory,
    cli_people,
    cli_process,
    cli_runs,
    cli_schedule,
    cli_sql,
    cli_verify,
)

app = typer.Typer(
    name="crewlog",
    help="A crew of agents, one log. Start with: crewlog demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # loading rich would double the time that help takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    cli_crew,
    cli_runs,
    cli_control,
    cli_debug,
    cli_lineage,
    cli_export,
    cli_costs,
    cli_memory,
    cli_people,
    cli_process,
    cli_budget,
    cli_dlq,
    cli_effects,
    cli_schedule,
    cli_mcp,
    cli_verify,
    cli_chaos,
    cli_fork,
    cli_bisect,
    cli_files,
    cli_sql,
    cli_golden,
    cli_eval,
):
    module.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("crewlog"))
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


@app.command("version")
def show_version() -> None:
    """Show the version."""
    _show_version(wanted=True)


def main() -> None:
    """Run the command line."""
    _narrow(sys.argv[1:2])
    app(prog_name="crewlog")


def _narrow(named: Sequence[str]) -> None:
    """Leave out all commands but the one that was named: making the parameters of all of them takes longer than most of them run.

    What is no command leaves everything as it is, so that help and suggestions are whole.
    """
    commands = [command for command in app.registered_commands if [_name_of(command)] == named]
    groups = [group for group in app.registered_groups if [group.name] == named]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups


def _name_of(command: CommandInfo) -> str:
    return command.name or (command.callback.__name__.replace("_", "-") if command.callback is not None else "")


if __name__ == "__main__":
    main()
