"""The README keeps its word: its commands, settings, views and examples exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from crewlog.events.config import Config
from crewlog.orchestrator.cli import command_line

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_first_code_blocks_are_the_two_commands() -> None:
    assert re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2] == ["pip install uv && uv run crewlog demo\n", "pip install uv && uv run pytest\n"]


@pytest.mark.parametrize("line", sorted({line.split("  #")[0] for line in re.findall(r"(?m)(?:^|`|&& |: )(crewlog [a-z][^`\n]*)", README)}))
def test_commands_exist_with_their_options(line: str) -> None:
    command = get_command(command_line())
    words = line.replace('"', "").replace(")", "").split()[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{line!r} names no command"
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options | {"--help"}


def test_settings_exist() -> None:
    known = {f"CREWLOG_{name.upper()}" for name in Config.model_fields}
    assert set(re.findall(r"CREWLOG_[A-Z_]+[A-Z]", README)) <= known


def test_views_are_the_documented_ones() -> None:
    documented = set(re.findall(r"`crewlog\.(\w+)`", (ROOT / "docs" / "views.md").read_text())) - {"search_documents"}
    table = README.split("| View in schema `crewlog` |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))) == documented


@pytest.mark.parametrize("name", ["publish_task.py", "shouter.py"])
def test_examples_stand_there_as_they_run(name: str) -> None:
    lines = {line.strip() for line in (ROOT / "examples" / name).read_text().splitlines()}
    blocks = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if any(mark in block for mark in ("nats.connect", "AgentSpec("))]
    block = next(block for block in blocks if ("nats.connect" in block) == (name == "publish_task.py"))
    assert {line.strip() for line in block.splitlines()} <= lines


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
