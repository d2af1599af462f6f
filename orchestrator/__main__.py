"""Where the command `crewlog` begins: a Ctrl-C while the program is still being loaded ends it as quietly as any later one."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from crewlog.orchestrator.interruption import INTERRUPTED, leave_when_interrupted, say_interrupted


def main() -> None:
    """Load as much of the command line as the command needs, and run it."""
    leave_when_interrupted()
    _read_words_as_utf8()
    _open_what_is_closed()
    try:
        from crewlog.orchestrator.cli_quick import looks, run_quickly

        code = run_quickly(sys.argv[1:])
        if code is not None:
            _leave_at_once(code) if looks(sys.argv[1:]) else sys.exit(code)
        from crewlog.orchestrator.cli import main as run

        run()
    except KeyboardInterrupt:  # a second one, while the first was being obeyed
        say_interrupted()
        sys.exit(INTERRUPTED)


def _read_words_as_utf8() -> None:
    """Begin anew in Python's UTF-8 mode when the locale cannot read the words of the command line and UTF-8 can: in the locale `C`, goals and the names
    of files have their umlauts all the same."""
    if sys.getfilesystemencoding() == "utf-8" or "".join(sys.argv).isascii() or not sys.executable:
        return
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError:  # there are bytes in it that the locale has no characters for
        with suppress(UnicodeDecodeError):
            os.fsencode("".join(sys.argv)).decode()
            os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  (itself, with the same words)


def _open_what_is_closed() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) an empty one, or one that takes everything: Python has nothing in its
    place."""
    nowhere = Path(os.devnull)
    sys.stdin = sys.stdin or nowhere.open(encoding="utf-8")
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):  # in a locale without Unicode, a question mark for an umlaut is better than no answer
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):  # the latter in the locale `C`
            stream.reconfigure(errors="replace")


def _leave_at_once(code: int) -> None:
    """End the process without freeing what it holds one by one: for a run of thousands of events that takes longer than telling its causes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
