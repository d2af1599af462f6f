"""Conventions of the command line that need no crew: quick help, coroutines that run, exit codes, quiet pipes."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from crewlog.orchestrator import cli_output
from crewlog.orchestrator.bundle import read_bundle, unpack_bundle
from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.cli_output import Detached, Exit, exit_code_of, log_to_stderr, print_table, printable, run_async
from crewlog.orchestrator.client import RequestRefused
from crewlog.orchestrator.demo_run import run_demo
from crewlog.orchestrator.home import AlreadyRunning
from crewlog.orchestrator.supervisor import parse_counts
from crewlog.schemas.errors import ConfigError, ConflictError, ContractError, LimitExceeded, NotFound, Unavailable

CLI = (sys.executable, "-P", "-m", "crewlog.orchestrator")
HELP_WITHIN_S = 0.4


def test_help_is_quick() -> None:
    def help_s() -> float:  # of the processor: it does not count how busy the machine is
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CLI, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(help_s() < HELP_WITHIN_S for _ in range(20)), "two that share a core are both slower by half"


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
    monkeypatch.setattr(cli_output, "_forget", lambda output: None)

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
    cli_output._report(NotFound("run", "f", candidates=("fa", "fb")))
    cli_output._report(NotFound("file (tasks of this run made: a)", "b"))
    cli_output._report(NotFound("event (run x has events 1 to 2)", "x:9"))
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
        "error: run 'f' is ambiguous: fa, fb",
        "  next: write more of the one that is meant",
        "error: file (tasks of this run made: a) 'b' matches nothing",
        "error: event (run x has events 1 to 2) 'x:9' matches nothing",
        "  next: crewlog show RUN --as events numbers those of a run; name one as RUN:12",
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


RECORDED = Path(__file__).parents[1] / "golden_tasks" / "data-no-table.golden.run"
FULL = Path("/dev/full")
"""Takes nothing, as a disk without room."""


NO_ROOM = "--help|golden run --help|version|doctor -o json|show {bundle}|events {bundle} -o json|export {bundle} --out -"


@pytest.mark.parametrize("arguments", NO_ROOM.split("|"))
def test_output_that_finds_no_room_ends_in_one_line_and_its_exit_code(arguments: str) -> None:
    words = [word.format(bundle=RECORDED) for word in arguments.split()]
    with FULL.open("wb") as full:
        done = subprocess.run([*CLI, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        Exit.NOT_WRITTEN,
        ["error: the output could not be written: No space left on device", "  next: make room, or write elsewhere"],
    )
    assert "Traceback" not in done.stderr


def test_what_is_no_file_and_can_be_no_run_is_said_without_a_crew(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for given in ("gone.run", "folder", "@lastt", "\N{SHIP}", ""):
        done = subprocess.run([*CLI, "show", given, "--as", "tree"], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr.splitlines()[0]) == (Exit.NOT_FOUND, f"error: file or run {given!r} matches nothing")


def test_errors_that_nobody_can_be_told_keep_their_exit_code() -> None:
    with FULL.open("wb") as full:
        assert subprocess.run([*CLI, "show", "/nowhere/x.run"], stdout=subprocess.PIPE, stderr=full, check=False).returncode == Exit.NOT_FOUND
    closed = subprocess.run(["bash", "-c", f"{' '.join(CLI)} show {RECORDED} >&- 2>&-"], check=False)
    assert closed.returncode == Exit.OK


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    kept, link, limit = tmp_path / "kept", tmp_path / "link", 1 << 16
    kept.write_bytes(b"before")
    link.symlink_to(kept)
    written = f"""
import resource, signal
from pathlib import Path
from crewlog.orchestrator.whole_file import whole_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with whole_file(Path({str(link)!r})) as file:
        file.write(bytes({limit + 1}))
except OSError as error:
    print(error.filename)
with whole_file(Path({str(link)!r})) as file:
    file.write(b"after")
"""
    done = subprocess.run([sys.executable, "-P", "-c", written], capture_output=True, text=True, check=True)
    assert done.stdout == f"{link}\n"
    assert (kept.read_bytes(), link.is_symlink(), sorted(tmp_path.iterdir())) == (b"after", True, [kept, link])


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        subprocess.run([*CLI, "export", RECORDED, "--out", pipe], check=True, capture_output=True)
        assert unpack_bundle(reader.communicate()[0], str(pipe)) == read_bundle(RECORDED)
    assert pipe.is_fifo()
    done = subprocess.run([*CLI, "export", RECORDED, "--out", FULL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (Exit.NOT_WRITTEN, f"error: {FULL} could not be written: No space left on device")
    assert FULL.is_char_device()


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


WRONG_USE = (
    "submit|submit  |nonsense|runs -o xml|runs --status asleep|scale research=many|submit goal --file x|submit goal --budget 1 --soft 2|submit goal --attach "
)


@pytest.mark.parametrize("arguments", [line.split(" ") for line in WRONG_USE.split("|")])
def test_wrong_use_ends_with_2_and_says_why(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True, env={**os.environ, "CREWLOG_HOME": str(tmp_path)}, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "rror" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "task.json: No such file"),
        (b"\xff\xfe{", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"objective": "x", "timeout_seconds": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b"[]", "not a valid AgentTask"),
        (b'\xef\xbb\xbf{"type": "data", "objective": " \\n"}', "/objective: must not be blank: say what is to be done"),
        (b'{"steps":[]}', "not a valid plan"),
    ],
)
def test_a_file_that_holds_no_task_is_refused_before_anything_is_asked(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run([*CLI, "submit", "--file", file, "--home", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.NOT_FOUND if content is None else Exit.USAGE, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_is_read_as_utf8_in_any_locale_and_a_closed_stdin_holds_none(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"type": "data", "objective": "Größe"}', encoding="utf-8")
    poor = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "CREWLOG_HOME": str(tmp_path)}
    for command, code, said in (("--file task.json", 4, "no crew runs"), ("--file - < task.json", 4, "no crew runs"), ("--file - <&-", 2, "- is not JSON")):
        line = f"{shlex.join(CLI)} submit {command}"
        done = subprocess.run(["/bin/sh", "-c", line], env=poor, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr


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


def test_ctrl_c_before_a_command_begins_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes while the event loop is being made: the command has not begun, and Python must not complain that it never did."""

    class Interrupted(asyncio.Runner):
        def __enter__(self) -> asyncio.Runner:
            raise KeyboardInterrupt

    async def command() -> int:
        raise AssertionError("it must not begin")

    body = command()
    monkeypatch.setattr(asyncio, "Runner", Interrupted)
    assert cli_output.run_to_end(body) == Exit.INTERRUPTED
    assert inspect.getcoroutinestate(body) == inspect.CORO_CLOSED


WITHOUT_UNICODE: tuple[dict[str, str], ...] = ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"})


@pytest.mark.parametrize("locale", WITHOUT_UNICODE)
def test_json_loses_nothing_in_a_locale_without_unicode(locale: dict[str, str]) -> None:
    data = {"goal": "K\xf6ln \u2713", "name": "not UTF-8: \udcff", "bell": "\a"}
    program = (
        "from crewlog.orchestrator import __main__ as start, cli_output; start._open_what_is_closed(); "
        f"cli_output.print_json({data!a}); cli_output.print_json_line({data!a})"
    )
    for environment in ({**os.environ, **locale, "PYTHONUTF8": "0"}, {**os.environ, "PYTHONUTF8": "1"}):
        told = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, check=True).stdout.decode()
        document, _, line = told.rstrip("\n").rpartition("\n")
        assert json.loads(document) == json.loads(line) == data


@pytest.mark.parametrize("locale", WITHOUT_UNICODE)
def test_what_a_locale_cannot_write_becomes_a_question_mark(locale: dict[str, str]) -> None:
    program = "from crewlog.orchestrator import __main__ as start; start._open_what_is_closed(); print('K\\xf6ln')"
    poor = {**os.environ, **locale, "PYTHONUTF8": "0"}
    told = subprocess.run([sys.executable, "-P", "-c", program], env=poor, capture_output=True, check=True)
    assert told.stdout == b"K?ln\n"


def test_words_of_the_command_line_are_utf8_in_a_locale_that_has_none(tmp_path: Path) -> None:
    poor = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}
    (tmp_path / "Größe.json").write_text("[]")

    def said(word: str | bytes) -> str:
        told = subprocess.run([*CLI, "golden", "run", word], env=poor, cwd=tmp_path, capture_output=True, check=False)
        return (told.stdout + told.stderr).decode()

    assert "Größe-数 does not exist" in said("Größe-数")
    assert "Größe.json is no golden task" in said("Größe.json")
    assert "does not exist" in said(b"Gr\xf6\xdfe")


STRUCK = """
import asyncio, os, signal, sys
from crewlog.orchestrator import __main__ as start
from crewlog.orchestrator import cli_output, cli_quick

def struck_while_loading(_):
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("it went on")

async def struck_at_work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    finally:
        print("cleaned up")

cli_quick.run_quickly = struck_while_loading if sys.stdin.read() == "loading" else lambda _: cli_output.run_to_end(struck_at_work())
sys.argv = ["crewlog", "replay", "a b", "--verify"]
start.main()
"""


@pytest.mark.parametrize(("when", "printed"), [("loading", ""), ("at work", "cleaned up\n")])
def test_ctrl_c_at_any_time_says_how_to_go_on(when: str, printed: str) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", STRUCK], input=when, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.INTERRUPTED, printed)
    assert done.stderr == "interrupted; go on with: crewlog replay 'a b' --verify\n"


def test_an_error_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cli_output.complain("pk:m: m is not there", why="see :data: [bold]x[/bold]", next_step="name :smile: so")
    assert capsys.readouterr().err == "error: pk:m: m is not there\n  why: see :data: [bold]x[/bold]\n  next: name :smile: so\n"


@pytest.mark.parametrize("words", ["status --home", "show - --home", "up --home", "docs add", "submit x --attach", "show - --save"])
def test_an_empty_path_is_not_the_current_folder(words: str) -> None:
    done = subprocess.run([*CLI, *words.split(), ""], capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE
    assert "it is empty: name a file or folder; . is the current one" in done.stderr


def test_a_limit_is_told_to_the_byte() -> None:
    assert str(LimitExceeded("bytes of attachment a", used=67_108_865, limit_max=67_108_864)) == "limit bytes of attachment a reached: 67108865 of 67108864"
    assert str(LimitExceeded("seconds", used=0.1 + 0.2, limit_max=0.25)) == "limit seconds reached: 0.3 of 0.25"


def test_what_to_do_about_a_server_that_does_not_answer_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def command() -> int:
        raise Unavailable("nobody listens on api.x: the process that answers it is not running\nsee `crewlog status`")

    assert cli_output.run_to_end(command()) == Exit.UNREACHABLE
    assert capsys.readouterr().err == "error: nobody listens on api.x: the process that answers it is not running\n  next: see `crewlog status`\n"


@pytest.mark.parametrize(
    ("settings", "error", "advice"),
    [
        ({}, "Postgres cannot be reached: refused", "is it running? see `crewlog status`; start it with `crewlog up`"),
        (
            {"CREWLOG_DATABASE_URL": "postgresql://db/crew"},
            "Postgres cannot be reached: refused",
            "is it running, and is CREWLOG_DATABASE_URL right? `crewlog doctor` looks at it",
        ),
        ({"CREWLOG_DATABASE_URL": "postgresql://db/crew"}, "no NATS server at n", "is it running? see `crewlog status`; start it with `crewlog up`"),
        ({"CREWLOG_NATS_URL": "nats://n"}, "no NATS server at n", "is it running, and is CREWLOG_NATS_URL right? `crewlog doctor` looks at it"),
    ],
)
def test_nobody_is_told_to_start_a_server_of_his_own_with_crewlog_up(
    settings: dict[str, str], error: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CREWLOG_DATABASE_URL", "CREWLOG_NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, address in settings.items():
        monkeypatch.setenv(name, address)

    async def command() -> int:
        raise Unavailable(error)

    assert cli_output.run_to_end(command()) == Exit.UNREACHABLE
    assert capsys.readouterr().err == f"error: {error}\n  next: {advice}\n"


async def test_a_demo_that_lacks_something_names_all_of_it_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("duckdb", "pypdf", "aiosmtpd", "pytest"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as lacks:
        await run_demo(tmp_path / "home", keep=False, yes=True)
    assert str(lacks.value) == "the demo needs duckdb, pypdf, aiosmtpd, pytest\npip install 'crewlog[data,docs,demo]'"
    assert not (tmp_path / "home").exists()


def test_what_others_named_is_no_record_of_its_own_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log_to_stderr()
    try:
        raise ValueError("\x1b]0;owned\x07")
    except ValueError:
        root.exception("agent %s registered", "w\nINFO crewlog.orchestrator: all is well\x1b[31m\u202e")

    told = capsys.readouterr().err
    assert told.splitlines()[0] == r"ERROR root: agent w\nINFO crewlog.orchestrator: all is well\u001b[31m\u202e registered"
    assert told.splitlines()[-1] == r"ValueError: \u001b]0;owned\u0007"
