"""Commands that begin without Typer: those that only look at a run, and the processes of the crew.

Typer and what it loads take longer than the look, and would stay in the memory of every process for nothing. What is not plain, such as
`--help`, an unknown option or a value that is none, is left to the whole command line: it alone explains itself. A test holds both together.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from crewlog.orchestrator.cli_output import Output, run_to_end


class Option(NamedTuple):
    """An option: the parameter it fills, and how its value is read; None for a switch. Of one that may be repeated all values are kept."""

    parameter: str
    read: Callable[[str], Any] | None
    is_list: bool = False


class Command(NamedTuple):
    """A command that can begin at once.

    Attributes:
        function: where its coroutine function is, as `module:name`.
        arguments: the parameters that its arguments fill, in their order.
        is_needed: it does not run without all of them.
        works: it is a process of the crew.
        looks: it looks at a run and ends.
    """

    function: str
    arguments: tuple[str, ...]
    options: Mapping[str, Option]
    is_needed: bool = False
    works: bool = False
    looks: bool = False


def _view(text: str) -> Any:
    from crewlog.orchestrator.cli_look import View

    return View(text)


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("left to Typer, which refuses it")
    return Path(text)


_HOME: Final = {"--home": Option("home", _folder)}
_PRINTED: Final = {**_HOME, "--output": Option("output", Output), "-o": Option("output", Output)}
_LOOK: Final = {**_PRINTED, "--reasoning": Option("reasoning", None)}
_REPLAY: Final = {**_LOOK, "--verify": Option("verify", None), "--to": Option("to", str), "--step": Option("step", None)}
_LINEAGE: Final = {**_PRINTED, **{f"--{what}": Option(what, str) for what in ("sentence", "artifact", "effect")}}
QUICK: Final[Mapping[str, Command]] = {
    "show": Command("cli_look:look", ("run",), {**_LOOK, "--as": Option("view", _view)}, looks=True),
    "events": Command("cli_look:list_events", ("run",), _LOOK, looks=True),
    "explain": Command("cli_look:explain", ("event",), _LOOK, is_needed=True, looks=True),
    "replay": Command("cli_past:replay", ("run",), _REPLAY, looks=True),
    "diff": Command("cli_past:diff", ("a", "b"), _PRINTED, is_needed=True, looks=True),
    "lineage": Command("cli_past:lineage", ("run",), _LINEAGE, looks=True),
    "up": Command("cli_work:up", (), {**_HOME, "--agents": Option("agents", str, is_list=True)}),
    "orchestrator": Command("cli_work:orchestrator", (), _HOME, works=True),
    "projector": Command("cli_work:projector", (), _HOME, works=True),
    "agent": Command("cli_work:agent", ("kind",), {**_HOME, "--shadow": Option("shadow", None)}, is_needed=True, works=True),
}


def looks(words: Sequence[str]) -> bool:
    """Say whether these words of the command line name a command that only looks: it leaves nothing behind but what it printed."""
    return bool(words) and words[0] in QUICK and QUICK[words[0]].looks


def run_quickly(words: Sequence[str]) -> int | None:
    """Run the command that these words of the command line name, and return its exit code; None when it must begin the whole way."""
    command = QUICK.get(words[0]) if words else None
    given = None if command is None else read_words(command, words[1:])
    if command is None or given is None:
        return None
    module, _, name = command.function.partition(":")
    body = getattr(import_module(f"crewlog.orchestrator.{module}"), name)
    if command.looks:
        gc.disable()  # a look ends before garbage matters, and a run is many objects that all stay
    return run_to_end(body(**given), works=command.works)


def read_words(command: Command, words: Sequence[str]) -> dict[str, Any] | None:
    """Read the words behind the name of a command; None when one of them is not plain."""
    given: dict[str, Any] = {}
    rest, unfilled = iter(words), list(command.arguments)
    for word in rest:
        if word == "-" or not word.startswith("-"):
            if not unfilled:
                return None
            given[unfilled.pop(0)] = word
            continue
        name, is_joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        option = command.options.get(name)
        if option is None or (option.read is None and is_joined):
            return None
        if option.read is None:
            given[option.parameter] = True
            continue
        value = value if is_joined else next(rest, "-")
        if value.startswith("-"):
            return None
        try:
            read = option.read(value)
        except ValueError:
            return None
        given[option.parameter] = [*given.get(option.parameter, ()), read] if option.is_list else read
    return None if command.is_needed and unfilled else given
