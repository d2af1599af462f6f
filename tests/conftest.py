"""Fixtures of real servers, for every test that wants them, the options of the schedule explorer in `tests/sim`, and what runs only with `--long`."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

LONGEST_FIRST = ("process", "sim", "contract")
"""Folders whose files take longest: with several workers they begin before the many that take a second, which then fill up what is left of each."""
pytest.register_assert_rewrite("support")  # what a failed check of theirs compared is told
pytest_plugins = ["support.reaper", "support.replayed", "support.postgres", "support.nats", "support.live_crew"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many schedules to play, from which seed on, or one of them again."""
    group = parser.getgroup("simulation")
    group.addoption("--sim-seeds", type=int, default=5_000, help="schedules to play")
    group.addoption("--sim-from", type=int, default=0, help="first seed")
    group.addoption("--sim-seed", type=int, default=None, help="play this seed alone")
    parser.getgroup("crewlog").addoption(
        "--long", action="store_true", help="also run the tests marked `long`: more of the same, or slow by nature; and draw other examples than last time"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name our marker, draw the same examples every time, and let the hundreds of processes that tests start share compiled modules, wherever
    Python is told to keep none.

    They also get a terminal's signals: a shell without job control ignores Ctrl-C for what it starts in the background, and so would they.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who is told to end by whatever runs it takes crews and folders along
    # how long an example takes says what else the machine does; and a change is told what it broke, not what nobody has drawn before
    settings.register_profile("suite", deadline=None, derandomize=not config.getoption("--long"))
    settings.load_profile("suite")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(config.rootpath / ".pytest_cache" / "compiled"))
    config.addinivalue_line("markers", "long: takes longer than a suite that runs at every change should; run with --long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the folders in order, and leave the long tests out, unless they are asked for."""
    ranks = {config.rootpath / "tests" / folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.parent, len(ranks)))
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long") is not None:
                item.add_marker(pytest.mark.skip(reason="long: run with --long"))
