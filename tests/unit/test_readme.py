"""The README and the pages in docs keep their word: their commands, settings, views, links and examples exist."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from typer.main import get_command

from crewlog.events.config import Config
from crewlog.orchestrator.cli import command_line

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EVERYTHING = "\n".join(PAGES.values())
CONFIGURATION = PAGES[Path("docs/configuration.md")]


@cache
def whole_command_line() -> Any:
    """Build it once: there are many lines to compare with it."""
    return get_command(command_line())


def test_the_first_code_blocks_are_the_two_commands() -> None:
    assert re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2] == ["pip install uv && uv run crewlog demo\n", "pip install uv && uv run pytest\n"]


@pytest.mark.parametrize("line", sorted({line.split("  #")[0] for line in re.findall(r"(?m)(?:^|^    |^\$ |`|&& |: )(crewlog [a-z][^`\n]*)", EVERYTHING)}))
def test_commands_exist_with_their_options(line: str) -> None:
    command = whole_command_line()
    words = re.sub(r'"[^"]*"', "TEXT", line).replace('"', "").replace(")", "").split()[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{line!r} names no command"
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options | {"--help"}


def test_settings_exist() -> None:
    known = {f"CREWLOG_{name.upper()}" for name in Config.model_fields}
    assert set(re.findall(r"CREWLOG_[A-Z_]+[A-Z]", EVERYTHING)) <= known | {"CREWLOG_RUN", "CREWLOG_STATUS"}  # the two are told to the check of `bisect`


def test_every_setting_is_on_its_page_with_its_default() -> None:
    shown = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| ([^|]*?) *\|", CONFIGURATION))
    fields = {_variable(name, field): field for name, field in Config.model_fields.items()}
    assert shown.keys() == fields.keys()
    told = {name: _told(fields[name].default) for name, default in shown.items() if default and fields[name].default_factory is None}
    assert {name: default for name, default in shown.items() if name in told} == told


def _variable(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    return alias if isinstance(alias, str) else str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"CREWLOG_{name.upper()}"


def _told(default: object) -> str:
    if default in (None, "", (), {}):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return str(int(default)) if isinstance(default, int | float) else f"`{default}`"


def test_the_settings_file_on_that_page_is_one() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", CONFIGURATION, re.DOTALL)
    assert Config(**tomllib.loads(example)).budgets["default"]["run"].hard_micro_usd == 500_000


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


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]+))?\)", PAGES[page]):
        led_to = (ROOT / page).parent / target if target else ROOT / page
        assert led_to.exists(), target
        headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in led_to.read_text().splitlines() if line.startswith("#")}
        assert not anchor or anchor in headings, f"{target}#{anchor}"
