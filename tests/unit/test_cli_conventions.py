"""Conventions of the command line that need no crew: quick help, coroutines that run, exit codes, quiet pipes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from crewlog.orchestrator import cli_output
from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.cli_output import Detached, Exit, exit_code_of, print_table, printable, run_async
from crewlog.orchestrator.client import RequestRefused
from crewlog.orchestrator.home import AlreadyRunning
from crewlog.orchestrator.supervisor import parse_counts
from crewlog.schemas.errors import ConfigError, ConflictError, ContractError, NotFound, Unavailable

CLI = (sys.executable, "-P", "-m", "crewlog.orchestrator")
HELP_WITHIN_S = 0.4


def test_help_is_quick() -> None:
    def help_s() -> float:  # of the processor: it does not count how busy the machine is
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CLI, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(help_s() for _ in range(5)) < HELP_WITHIN_S


def test_help_loads_nothing_heavy() -> None:
    script = "import sys; from crewlog.orchestrator.cli import command_line; command_line();"
    script += " print([m for m in ('pydantic', 'asyncpg', 'nats', 'rich', 'msgspec', 'anthropic') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_commands_are_those_of_the_manual() -> None:
    commands = get_command(command_line()).commands  # type: ignore[attr-defined]
    manual = (
        "demo up down status providers doctor submit watch runs show events costs why approvals approve deny resolve cancel replay explain diff fork export "
        "pause resume quarantine release terminate drain scale docs agent orchestrator projector db seal verify import archive prune effects "
        "rollback eval shadow lineage bisect erase"
    )
    assert set(commands) == {*manual.split(), "sql", "budget", "dlq", "schedule", "nats", "mcp", "memory", "chaos", "golden", "version"}
    assert {name: set(commands[name].commands) for name in ("budget", "db", "dlq", "docs", "golden", "mcp", "memory", "nats", "schedule")} == {
        "budget": {"list", "show", "raise", "set"},
        "db": {"migrate", "rebuild", "url"},
        "dlq": {"list", "show", "redrive", "drop"},
        "docs": {"add", "list"},
        "golden": {"record", "run"},
        "mcp": {"list", "show"},
        "memory": {"list", "show", "forget"},
        "nats": {"url"},
        "schedule": {"add", "list", "pause", "resume", "run-now", "remove"},
    }
    for name, command in commands.items():
        assert len(command.get_short_help_str(200)) <= 100, f"{name}: the first sentence is too long for the list of commands"


def _a_command(body: object) -> typer.Typer:
    small = typer.Typer()
    small.command()(run_async(body))  # type: ignore[arg-type]
    return small


def test_a_coroutine_command_runs_and_its_number_is_the_exit_code() -> None:
    async def command(code: int) -> int:
        await asyncio.sleep(0)
        return code

    assert CliRunner().invoke(_a_command(command), ["0"]).exit_code == 0
    assert CliRunner().invoke(_a_command(command), ["6"]).exit_code == 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ContractError("bad"), Exit.USAGE),
        (ConfigError("bad"), Exit.USAGE),
        (AlreadyRunning("there"), Exit.CONFLICT),
        (NotFound("run", "x"), Exit.NOT_FOUND),
        (Unavailable("away"), Exit.UNREACHABLE),
        (ConflictError("run/x", expected=1, actual=2), Exit.CONFLICT),
        (RequestRefused("conflict", "too late"), Exit.CONFLICT),
        (RequestRefused("tenant_full", "too much is open"), Exit.CONFLICT),
        (RequestRefused("not_found", "no run"), Exit.NOT_FOUND),
        (TimeoutError(), Exit.TIMEOUT),
        (Detached("crewlog watch x"), Exit.INTERRUPTED),
        (BrokenPipeError(), Exit.OK),
    ],
)
def test_every_ending_has_its_exit_code(error: BaseException, code: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_output, "_forget_stdout", lambda: None)

    async def command() -> None:
        raise error

    done = CliRunner().invoke(_a_command(command))
    assert done.exit_code == code
    assert done.stdout == ""


@pytest.mark.parametrize(("works", "code"), [(False, Exit.USAGE), (True, None)])
def test_a_file_that_cannot_be_used_is_said_and_a_process_keeps_its_traceback(works: bool, code: Exit | None, tmp_path: Path) -> None:
    async def command() -> None:
        (tmp_path / "a-file").write_text("")
        (tmp_path / "a-file" / "below").mkdir()

    small = typer.Typer()
    small.command()(run_async(command, works=works))
    done = CliRunner().invoke(small)
    if code is None:
        assert isinstance(done.exception, NotADirectoryError)
    else:
        assert done.exit_code == code
        assert f"error: {tmp_path / 'a-file' / 'below'}: Not a directory" in done.stderr.replace("\n", "")


def test_a_bug_is_not_hidden() -> None:
    async def command() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(_a_command(command)).exception, ZeroDivisionError)


def test_errors_say_what_why_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    cli_output._report(Unavailable("no crew runs here\nstart one with `crewlog up`"))
    cli_output._report(ConfigError("the folder is read-only", hint="choose another"))
    cli_output._report(ContractError("not a task", problems=(("/type", "unknown"),)))
    cli_output._report(NotFound("run", "ff"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: no crew runs here",
        "  next: start one with `crewlog up`",
        "error: the folder is read-only",
        "  next: choose another",
        "error: not a task",
        "  why: /type: unknown",
        "error: run 'ff' matches nothing",
        '  next: crewlog runs lists them; those that were archived: crewlog sql "select run_id, file from archives"',
    ]
    assert exit_code_of(RuntimeError()) is Exit.USAGE


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    shell = subprocess.run(
        ["bash", "-c", f"{' '.join(CLI)} doctor -o json | head -c 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CREWLOG_HOME": str(tmp_path)},
    )
    assert shell.stderr == ""
    assert shell.stdout in ("[0\n", "[1\n")  # a machine that lacks something ends with 1


def test_tables_are_plain_aligned_text_and_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME", "N"], [["a", 1], ["long", 200], ["\x1b[2Jevil\n", None]], right=frozenset({"N"}))
    assert capsys.readouterr().out == "NAME         N\na            1\nlong       200\n [2Jevil\n"
    assert printable("tab\tbell\a") == "tab bell "


def test_no_text_of_others_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    steering = "a\x1b[31mb\x9bc\rd\u202ee"
    kept = "Käse\u00a0👩\u200d💻\ttab\nline\r\n"
    cli_output.print_lines([kept + steering])
    cli_output.say(steering)
    cli_output.complain(steering)
    told = capsys.readouterr()
    assert told.out == "Käse\u00a0👩\u200d💻\ttab\nline\na\ufffd[31mb\ufffdc\ufffdd\ufffde\n"
    assert not set("\x1b\x9b\r\u202e") & set(told.err)
    cli_output.print_json({"text": steering})
    document = capsys.readouterr().out
    assert not set("\x1b\x9b\r\u202e") & set(document)
    assert json.loads(document) == {"text": steering}, "data is what it was"


def test_counts_of_agents() -> None:
    assert parse_counts(["research=4,code=0", "data=2,data.shadow=1"]) == {"research": 4, "code": 0, "data": 2, "data.shadow": 1}
    for wrong in ("research", "research=x", "research=65", "nobody=1", "a.b=1"):
        with pytest.raises(ContractError, match=wrong.split("=", maxsplit=1)[0]):
            parse_counts([wrong])


WRONG_USE = "submit|submit  |nonsense|runs -o xml|runs --status asleep|scale research=many|submit goal --file x|submit goal --budget 1 --soft 2"


@pytest.mark.parametrize("arguments", [line.split(" ") for line in WRONG_USE.split("|")])
def test_wrong_use_ends_with_2_and_says_why(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, env={**os.environ, "CREWLOG_HOME": str(tmp_path)}, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "rror" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[]", "not a valid AgentTask"),
        (b'{"steps":[]}', "not a valid plan"),
    ],
)
def test_a_file_that_holds_no_task_is_refused_before_anything_is_asked(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run([*CLI, "submit", "--file", file, "--home", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_that_are_not_toml_are_named(tmp_path: Path) -> None:
    (tmp_path / "crewlog.toml").write_text('slots = "4\n')
    done = subprocess.run([*CLI, "status"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "crewlog.toml is not TOML" in done.stderr
    assert "line 1" in done.stderr


def test_no_crew_is_said_at_once(tmp_path: Path) -> None:
    done = subprocess.run([*CLI, "runs", "--home", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "no crew runs in" in done.stderr
    assert "crewlog up" in done.stderr
