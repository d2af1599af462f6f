"""Commands that begin without Typer take the same words as those that Typer reads, and what is not plain is left to it."""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from crewlog.orchestrator.cli import COMMANDS, TOPICS, command_line
from crewlog.orchestrator.cli_look import View
from crewlog.orchestrator.cli_output import Output
from crewlog.orchestrator.cli_quick import QUICK, read_words, run_quickly


@cache
def every() -> Any:
    return get_command(command_line())


def whole(name: str) -> Any:
    return every().commands[name]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_module_adds_the_commands_it_is_loaded_for(module: str) -> None:
    small = typer.Typer()
    small.command("first")(lambda: None)
    small.command("second")(lambda: None)  # with two of its own, Typer makes no single command of it
    import_module(f"crewlog.orchestrator.{module}").register(small)
    assert [*get_command(small).commands][2:] == list(COMMANDS[module])  # type: ignore[attr-defined]


def test_help_lists_every_command_once() -> None:
    listed = [name for names in TOPICS.values() for name in names.split()]
    assert sorted(listed) == sorted(name for name, command in every().commands.items() if not command.hidden)


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name in commands])
def test_one_command_alone_is_what_it_is_among_all(name: str) -> None:
    alone = get_command(command_line(name))
    found = alone.commands[name] if hasattr(alone, "commands") else alone
    assert [param.opts for param in found.params] == [param.opts for param in whole(name).params]


@pytest.mark.parametrize("name", QUICK)
def test_options_fill_the_same_parameters_with_the_same_defaults(name: str) -> None:
    command, params = QUICK[name], {param.name: param for param in whole(name).params}
    module, _, function = command.function.partition(":")
    takes = inspect.signature(getattr(import_module(f"crewlog.orchestrator.{module}"), function)).parameters
    assert [name for name, param in params.items() if param.param_type_name == "argument"] == [*command.arguments]
    for argument in command.arguments:
        assert params[argument].required is command.is_needed
    for word, option in command.options.items():
        assert word in params[option.parameter].opts
        assert params[option.parameter].is_flag is (option.read is None)
        assert params[option.parameter].multiple is option.is_list
    for parameter in takes.values():
        if parameter.default is not inspect.Parameter.empty:
            assert (params[parameter.name].default or False) == (parameter.default or False), parameter.name


READ = {
    "show": {},
    "show -": {"run": "-"},
    "show 12ab --as tree -o json": {"run": "12ab", "view": View.TREE, "output": Output.JSON},
    "show --as=events --reasoning 12ab --home /tmp/x": {"run": "12ab", "view": View.EVENTS, "reasoning": True, "home": Path("/tmp/x")},
    "events --output=table": {"output": Output.TABLE},
    "explain 12ab:7": {"event": "12ab:7"},
    "replay 12ab --to 7 --reasoning": {"run": "12ab", "to": "7", "reasoning": True},
    "diff 12ab:7 x.crew -o json": {"a": "12ab:7", "b": "x.crew", "output": Output.JSON},
    "lineage --sentence=yes": {"sentence": "yes"},
    "agent research --home=h": {"kind": "research", "home": Path("h")},
    "orchestrator": {},
    "up --agents research=2 --agents=code=1,data=0": {"agents": ["research=2", "code=1,data=0"]},
}


@pytest.mark.parametrize("line", READ)
def test_plain_words_are_read(line: str) -> None:
    name, *words = line.split()
    assert read_words(QUICK[name], words) == READ[line]


NOT_PLAIN = (
    "show --help",
    "show -h",
    "show --save folder",
    "show --as nonsense",
    "show a b",
    "show --as",
    "show --home -x",
    "show --reasoning=yes",
    "show -ojson",
    "show -- 12ab",
    "events --follow",
    "explain",
    "replay 12ab --subject mine",
    "diff 12ab",
    "diff a b c",
    "agent",
    "up --detach",
    "orchestrator now",
    "runs",
    "",
)


@pytest.mark.parametrize("line", NOT_PLAIN)
def test_what_is_not_plain_is_left_to_the_whole_command_line(line: str) -> None:
    assert run_quickly(line.split()) is None
