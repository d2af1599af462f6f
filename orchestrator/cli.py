"""The command line: `crewlog`. Commands are thin over the public client; each is in a module that is loaded when it, or help, is wanted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo

from crewlog.orchestrator.cli_options import OutputOption
from crewlog.orchestrator.cli_output import Output, print_json, said_of_file

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "cli_crew": ("demo", "up", "down", "status", "providers", "scale", "doctor"),
    "cli_runs": ("submit", "watch", "runs", "show", "events", "why"),
    "cli_control": ("pause", "resume", "quarantine", "release", "terminate", "cancel", "drain"),
    "cli_debug": ("replay", "explain", "diff", "lineage"),
    "cli_export": ("export",),
    "cli_costs": ("costs",),
    "cli_memory": ("memory",),
    "cli_people": ("approvals", "approve", "deny", "resolve", "docs"),
    "cli_process": ("agent", "orchestrator", "projector", "db", "nats"),
    "cli_budget": ("budget",),
    "cli_dlq": ("dlq",),
    "cli_effects": ("effects", "rollback"),
    "cli_schedule": ("schedule",),
    "cli_mcp": ("mcp",),
    "cli_verify": ("seal", "verify"),
    "cli_chaos": ("chaos",),
    "cli_fork": ("fork",),
    "cli_bisect": ("bisect",),
    "cli_files": ("import", "archive"),
    "cli_prune": ("prune",),
    "cli_erase": ("erase",),
    "cli_sql": ("sql",),
    "cli_golden": ("golden",),
    "cli_eval": ("eval", "shadow"),
}
"""Module -> the commands it adds, in their order. Loading all modules takes longer than most commands run."""

TOPICS: Final[Mapping[str, str]] = {
    "The crew": "demo up down status scale doctor",
    "Work": "submit watch runs show events why docs schedule memory",
    "Questions and effects": "approvals approve deny resolve effects rollback",
    "Control": "pause resume quarantine release terminate drain",
    "Money and models": "costs budget providers",
    "Past runs": "replay explain diff lineage fork bisect export import",
    "Tests from runs": "golden eval shadow",
    "The log": "sql verify seal archive prune erase",
    "Processes and servers": "agent orchestrator projector db nats mcp dlq chaos version",
}
"""What help lists the commands under."""
HELP_COLUMNS_MAX: Final = 110


class Listing(TyperGroup):
    """The command line, whose help lists its commands by topic."""

    def format_commands(self, _: Any, formatter: Any) -> None:
        """Write one section for each topic. Typer keeps the types of both arguments to itself."""
        for topic, words in TOPICS.items():
            names = words.split()
            room = formatter.width - 6 - max(map(len, names))
            with formatter.section(topic):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(room)) for name in names])


def command_line(named: str | None = None) -> typer.Typer:
    """Make the command line.

    Args:
        named: the one command that will run; None, and what is no command, makes all of them, so that help and suggestions are whole.
    """
    app = typer.Typer(
        name="crewlog",
        cls=Listing,
        help="A crew of agents, one log. Start with: crewlog demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # loading rich would double the time that help takes
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_COLUMNS_MAX},
    )
    app.callback()(_options)
    app.command("version")(show_version)
    for module in [module for module, commands in COMMANDS.items() if named in commands] or COMMANDS:
        import_module(f"crewlog.orchestrator.{module}").register(app)
    commands = [command for command in app.registered_commands if _name_of(command) == named]
    groups = [group for group in app.registered_groups if group.name == named]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups
    return app


def _name_of(command: CommandInfo) -> str:
    return command.name or (command.callback.__name__.replace("_", "-") if command.callback is not None else "")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("crewlog"))
        raise typer.Exit


def _options(
    _: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


def show_version(output: OutputOption = Output.TABLE) -> None:
    """Show the version."""
    if output is Output.TABLE:
        _show_version(wanted=True)
    from importlib.metadata import version

    print_json({"version": version("crewlog")})


def main() -> None:
    """Run the command line."""
    try:
        command_line(sys.argv[1] if len(sys.argv) > 1 else None)(prog_name="crewlog")
    except OSError as error:  # of what Typer itself prints, such as help; commands end as `run_to_end` says
        sys.exit(said_of_file(error))
