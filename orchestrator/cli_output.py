"""How the command line talks: data to stdout, everything else to stderr, one exit code per kind of ending.

It is there before Typer is: commands that only look at a run never load that, see `cli_quick`.
Shapes printed with `-o json` are a contract held by a test: fields may be added, never renamed or removed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from enum import IntEnum, StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TextIO, TypeVar

from crewlog.orchestrator.interruption import INTERRUPTED, cancelled_when_interrupted, say_interrupted
from crewlog.orchestrator.whole_file import UNWRITABLE

if TYPE_CHECKING:
    from rich.console import Console

    from crewlog.events.config import Config

P = ParamSpec("P")
T = TypeVar("T")

_OBEYED: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys: control characters but tab and line feed, and those that turn the direction of what follows."""


class Exit(IntEnum):
    """What a command's exit code means."""

    OK = 0
    RUN_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    CONFLICT = 5
    WAITING_FOR_PERSON = 6
    NOT_WRITTEN = 74
    """As EX_IOERR of sysexits.h: it was done, but what came of it could not be printed or written, such as to a disk without room."""
    TIMEOUT = 124
    INTERRUPTED = INTERRUPTED


class Output(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"


def load_config(home: Path | None) -> Config:
    """Read the configuration, with the home folder of the command line when one was given."""
    from crewlog.events.config import load

    return load() if home is None else load(home=home)


class Detached(Exception):
    """Ctrl-C while something goes on without this command; `come_back` is the command that shows it again."""

    def __init__(self, come_back: str) -> None:
        super().__init__(come_back)
        self.come_back = come_back


def run_async(command: Callable[P, Coroutine[Any, Any, int | None]], *, works: bool = False) -> Callable[P, None]:
    """Make a coroutine function a command: Typer would call it and never run what it returns. The returned number is the exit code.

    Args:
        works: see `run_to_end`.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        import typer

        if code := run_to_end(command(*args, **kwargs), works=works):
            raise typer.Exit(code)

    return run


def run_to_end(body: Coroutine[Any, Any, int | None], *, works: bool = False) -> int:
    """Run what a command does and return its exit code.

    SIGTERM and Ctrl-C cancel it, so that its `finally` blocks run. Errors crewlog raises on purpose end in a report and their exit code, a
    file that a person named and that cannot be used in one too, everything else in a traceback.

    Args:
        works: it is a process of the crew, for which the faster event loop is worth its import.
    """
    from crewlog.schemas.errors import OrchestrationError

    try:
        with cancelled_when_interrupted(), asyncio.Runner(loop_factory=_working_loop() if works else None) as runner:
            code = runner.run(_until_signal(body)) or Exit.OK
        sys.stdout.flush()
    except Detached as detached:
        say(f"detached; it goes on. Come back with: {detached.come_back}")
        code = Exit.INTERRUPTED
    except (KeyboardInterrupt, asyncio.CancelledError):
        say_interrupted()
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # such as `| head`: whoever reads has what he wanted
        _forget(sys.stdout)
        code = Exit.OK
    except (OrchestrationError, TimeoutError) as error:
        _report(error)
        code = exit_code_of(error)
    except OSError as error:
        if works:
            raise
        code = said_of_file(error)
    finally:
        body.close()  # one that a signal kept from beginning; Python would warn of it
    return code


def said_of_file(error: OSError) -> Exit:
    """Report a file or output that cannot be used, and return the exit code.

    Raises:
        OSError: it is something else, and so is a bug: `error` itself.
    """
    if error.errno in UNWRITABLE:
        _forget(sys.stdout)
        complain(f"{error.filename or 'the output'} could not be written: {error.strerror}", next_step="make room, or write elsewhere")
        return Exit.NOT_WRITTEN
    if error.filename is None:
        raise error
    complain(f"{error.filename}: {error.strerror}")
    return Exit.NOT_FOUND if isinstance(error, FileNotFoundError) else Exit.USAGE


def _working_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    from crewlog.events.event_loop import new_event_loop

    return new_event_loop


async def _until_signal(body: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await body


def _report(error: BaseException) -> None:
    what, _, rest = str(error).partition("\n")
    next_step = getattr(error, "hint", "") or _where_to_look(error)
    why = "" if rest == next_step else rest.strip()
    if exit_code_of(error) is Exit.UNREACHABLE and not next_step:
        why, next_step = "", why or _how_to_reach(what)
    complain(what or type(error).__name__, why=why, next_step=next_step)


def _how_to_reach(what: str) -> str:
    """A server of one's own is none that `crewlog up` could start."""
    from crewlog.events.config import own_servers

    if setting := next((setting for server, setting in own_servers().items() if server in what), ""):
        return f"is it running, and is {setting} right? `crewlog doctor` looks at it"
    return "is it running? see `crewlog status`; start it with `crewlog up`"


def _where_to_look(error: BaseException) -> str:
    if exit_code_of(error) is not Exit.NOT_FOUND:
        return ""
    what = f"{getattr(error, 'what', '')} "
    listed = next((where for name, where in _LISTS.items() if what.startswith(f"{name} ")), "")
    return "write more of the one that is meant" if getattr(error, "candidates", ()) else listed


_LISTS: Mapping[str, str] = {
    "run": 'crewlog runs lists them; those that were archived: crewlog sql "select run_id, file from archives"',
    "file or run": "crewlog runs lists runs; a file is what crewlog export or crewlog archive wrote",
    "event": "crewlog show RUN --as events numbers those of a run; name one as RUN:12",
    "approval": "crewlog approvals lists them",
    "budget": "crewlog budget list --all lists them",
    "memory": "crewlog memory list lists them",
}
"""Where to look for what was not found."""

_EXIT_OF_CODE: Mapping[str, Exit] = {
    "not_found": Exit.NOT_FOUND,
    "unavailable": Exit.UNREACHABLE,
    "conflict": Exit.CONFLICT,
    "already_running": Exit.CONFLICT,
    "tenant_full": Exit.CONFLICT,
}


def exit_code_of(error: BaseException) -> Exit:
    """Map an error, ours or one that the orchestrator answered with, to the exit code of the command that met it."""
    return Exit.TIMEOUT if isinstance(error, TimeoutError) else _EXIT_OF_CODE.get(getattr(error, "code", ""), Exit.USAGE)


def log_to_stderr() -> None:
    """Let a process tell on stderr what it does, each record on a line of its own."""
    told = logging.StreamHandler()
    told.setFormatter(_OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[told])


class _OneLine(logging.Formatter):
    """Writes what others named, such as a worker or a subject, so that it neither looks like a record of its own nor moves the cursor of whoever
    reads the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging calls it so)
        return _escaped(super().formatMessage(record)).replace("\n", "\\n")

    def formatException(self, ei: Any) -> str:  # noqa: N802  (likewise)
        return _escaped(super().formatException(ei))


def say(text: str) -> None:
    """Tell the person something that is not data."""
    try:
        sys.stderr.write(f"{readable(text)}\n")
        sys.stderr.flush()
    except OSError:  # nobody is left who could be told; what it is about goes on
        _forget(sys.stderr)


def hush(name: str) -> None:
    """Keep a logger's warnings from standard error: the command tells what they are about itself, once."""
    logging.getLogger(name).addHandler(logging.NullHandler())


def complain(what: str, why: str = "", next_step: str = "") -> None:
    """Report an error in at most three parts: what failed, why, and what to do next."""
    console = stderr_console()
    try:
        console.print("error: ", style="bold red", end="")
        console.print(readable(what), markup=False, highlight=False)
        for label, text in (("why", why), ("next", next_step)):
            if text:
                console.print(readable(f"  {label}: {text}"), markup=False, highlight=False)
    except OSError:  # as in `say`: the exit code still tells
        _forget(sys.stderr)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back, unless it was answered beforehand.

    Raises:
        ContractError: nobody can be asked.
        typer.Abort: the answer is no.
    """
    import typer

    from crewlog.schemas.errors import ContractError

    if yes:
        return
    if not sys.stdin.isatty():
        raise ContractError(f"{question} nobody can be asked here\nsay so beforehand: --yes")
    typer.confirm(question, abort=True, err=True)


def stderr_console() -> Console:
    """Return a console on stderr; it follows NO_COLOR, shows no colour when stderr is not a terminal, and no picture in the place of `:m:`."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, emoji=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to stdout, all in one piece: a terminal or pipe that is told each by itself costs more than making them."""
    if text := "".join(f"{line}\n" for line in lines):
        sys.stdout.write(readable(text))
        sys.stdout.flush()


def print_json(data: Any) -> None:
    """Print one JSON document to stdout."""
    print_lines([_document(data, indent=2)])


def json_line(data: Any) -> str:
    """Return one JSON document as one line, for streams of them."""
    return _document(data)


def _document(data: Any, *, indent: int | None = None) -> str:
    """Write what a terminal would obey, and all that stdout has no characters for, as JSON writes any character; the document says the same."""
    document = json.dumps(data, ensure_ascii=False, indent=indent, default=str)
    try:
        document.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        document = json.dumps(data, indent=indent, default=str)
    return _escaped(document)


def _escaped(text: str) -> str:
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_json_line(data: Any) -> None:
    """Print one JSON document as one line to stdout."""
    print_lines([json_line(data)])


def plain(value: Any) -> Any:
    """Turn a value of the views or the contract into what JSON knows."""
    import msgspec

    return msgspec.to_builtins(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] = frozenset(), cut: frozenset[str] = frozenset()) -> None:
    """Print rows under headings to stdout: aligned, without lines or colours, so that people and `awk` can read them.

    Args:
        right: headings of the columns that hold numbers.
        cut: headings of the columns that may be cut where a terminal has no room for them.
    """
    from crewlog.orchestrator.cli_table import table_lines

    print_lines(table_lines([list(columns), *([_cell(value) for value in row] for row in rows)], right=right, cut=cut, width=terminal_width()))


def terminal_width() -> int | None:
    """Return how many columns the terminal has that stdout goes to; None when it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    output: Output,
    *,
    empty: str,
    right: frozenset[str] = frozenset(),
    cut: frozenset[str] = frozenset(),
) -> None:
    """Print a list as JSON or as a table.

    Args:
        columns: heading -> key of the row.
        empty: said on stderr when there is nothing and a table was wanted.
        right, cut: as for `print_table`.
    """
    if output is Output.JSON:
        print_json(list(rows))
    elif rows:
        print_table(list(columns), [[row[key] for key in columns.values()] for row in rows], right=right, cut=cut)
    else:
        say(empty)


def readable(text: str) -> str:
    """Replace what a terminal obeys instead of showing it: escape sequences of a model's answer, of a file or of a provider, and turned writing.

    Line feeds and tabs stay, as does everything that is a part of writing.
    """
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    """Replace control characters: what a model or a file wrote must not move the cursor of whoever reads it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return printable("" if value is None else str(value))


def _forget(output: TextIO) -> None:
    # what is still buffered has no reader any more: without this the interpreter would complain about it when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
