"""The debugging tutorial: every command and option in it exists, and what it says about certainty is what `lineage` does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.lineage import Certainty
from crewlog.orchestrator.shared_words import FIGURE_DIGITS_MIN, RUN_WORDS_MIN

PAGE = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
LINES = re.findall(r"^\$ crewlog (.+)$", PAGE, re.MULTILINE)
NUMBERS = {3: "three", 4: "four"}


@pytest.mark.parametrize("line", LINES)
def test_every_command_and_option_exists(line: str) -> None:
    command, words = get_command(command_line()), shlex.split(line)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"crewlog {line}: there is no {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    assert not unknown, f"crewlog {line}: {unknown}"


def test_options_in_the_text_exist() -> None:
    commands = get_command(command_line()).commands  # type: ignore[attr-defined]
    every = [each for command in commands.values() for each in (command, *getattr(command, "commands", {}).values())]
    known = {option for command in every for parameter in command.params for option in parameter.opts}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert named
    assert named <= known, named - known


def test_the_path_from_a_wrong_answer_to_a_golden_task_is_whole() -> None:
    first = list(dict.fromkeys(line.split()[0] for line in LINES))
    assert [name for name in first if name in ("submit", "explain", "fork", "diff", "golden")] == ["submit", "explain", "fork", "diff", "golden"]


def test_certainties_are_those_of_the_program() -> None:
    for certainty in get_args(Certainty):
        assert f"| `{certainty}` |" in PAGE
    assert f"{NUMBERS[RUN_WORDS_MIN]} words in a row, or a figure of {NUMBERS[FIGURE_DIGITS_MIN]} digits" in PAGE
