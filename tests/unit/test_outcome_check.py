"""What commands that try runs again refuse before anything is tried: checks and instructions that are none."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from crewlog.orchestrator.cli_bisect import checked, verdict_of
from crewlog.orchestrator.cli_fork import named_prompts
from crewlog.orchestrator.outcome_check import check_command, run_check
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


@pytest.mark.parametrize(
    ("content", "mode", "said"), [("#!/bin/sh\n", 0o644, "may not be executed; chmod +x it"), ("exit 0\n", 0o755, "cannot be started: Exec format error")]
)
async def test_a_file_that_is_no_program_is_refused_with_what_to_do(content: str, mode: int, said: str, tmp_path: Path) -> None:
    check = tmp_path / "check"
    check.write_text(content)
    check.chmod(mode)
    with pytest.raises(ContractError, match=re.escape(said)):
        await run_check(check_command(str(check)), b"")


@pytest.mark.parametrize(
    ("script", "verdict"),
    [("grep -q fine", "good"), ("grep -q poor", "bad"), ("exit 124", "bad"), ("exit 125", "skip"), ("no-such-command 2>&-", "skip"), ("kill -9 $$", "skip")],
)
async def test_only_a_check_that_was_carried_out_says_good_or_bad(script: str, verdict: str) -> None:
    assert verdict_of(await run_check(["sh", "-c", script], b"all is fine")) == verdict


async def test_a_check_that_hangs_is_killed_and_tells_nothing() -> None:
    assert await checked(["sleep", "600"], b"", {**os.environ}, 0.01) == ("skip", "was killed after 0.01 s")


async def test_a_check_ends_with_whoever_waits_for_it(tmp_path: Path) -> None:
    begun = tmp_path / "pid"
    os.mkfifo(begun)
    checking = asyncio.create_task(run_check(["sh", "-c", f"echo $$ >{begun}; exec sleep 600"], b""))
    pid = int(await asyncio.to_thread(begun.read_text))
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


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
