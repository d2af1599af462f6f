"""What commands that try runs again refuse before anything is tried: checks and instructions that are none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crewlog.orchestrator.cli_check import check_command
from crewlog.orchestrator.cli_fork import named_prompts
from crewlog.schemas.errors import ContractError


def test_a_check_is_taken_apart_without_a_shell() -> None:
    assert check_command("sh -c 'exit 1; true' $HOME") == ["sh", "-c", "exit 1; true", "$HOME"]


@pytest.mark.parametrize(
    ("check", "said"),
    [('sh -c "', "is no command: No closing quotation"), (" ", "--check is empty"), ("no-such-program -x", "there is no program 'no-such-program' here")],
)
def test_a_check_that_cannot_run_is_refused(check: str, said: str) -> None:
    with pytest.raises(ContractError, match=re.escape(said)):
        check_command(check)


def test_instructions_are_named_by_kind_or_for_all(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Be brief.")
    assert named_prompts([f"data=@{tmp_path}/p.txt", "Count: a=b"]) == {"data": "Be brief.", "*": "Count: a=b"}


@pytest.mark.parametrize("text", ["", "data= ", "data=@FILE", "@FILE"])
def test_instructions_that_say_nothing_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ContractError, match="has no instructions in it"):
        named_prompts([text.replace("FILE", f"{tmp_path}/empty.txt")])


def test_instructions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(ContractError, match=r"p\.bin is not UTF-8 text"):
        named_prompts([f"@{tmp_path}/p.bin"])
