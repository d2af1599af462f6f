from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crewlog.orchestrator.home import AlreadyRunning, Home, ProcessState, State, wait_gone
from crewlog.schemas.errors import ConfigError


def test_only_one_holds_the_lock_and_the_other_is_told_who(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    assert home.holder() is None
    with home.locked():
        assert home.holder() == os.getpid()
        with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"), Home(home.path).locked():
            pass
    assert home.holder() is None


def test_the_home_of_nobody_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match="~no-such-user/crew is that of a user who does not exist\nchoose another one: --home DIR"):
        Home(Path("~no-such-user/crew"))


def test_a_home_that_is_a_file_holds_no_crew(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert Home(tmp_path / "home").state() is None


def test_a_state_that_cannot_be_read_is_the_operators_to_mend(tmp_path: Path) -> None:
    (tmp_path / "state.json").mkdir()
    with pytest.raises(ConfigError, match=r"state\.json cannot be read: Is a directory\ndo it as the user who began this crew"):
        Home(tmp_path).state()


def test_who_looks_for_the_holder_keeps_nobody_from_taking_the_lock(tmp_path: Path) -> None:
    home, is_over = Home(tmp_path), threading.Event()
    with home.locked():
        pass

    def look() -> None:
        while not is_over.is_set():
            Home(tmp_path).holder()

    with ThreadPoolExecutor(2) as looking:
        looks = [looking.submit(look) for _ in range(2)]
        for _ in range(200):
            with home.locked():
                pass
        is_over.set()
        assert [done.result() for done in looks] == [None, None]


def test_a_home_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        Home(tmp_path / "file" / "home").prepare()


def test_what_a_home_holds_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    folders = {path.name: path.stat().st_mode & 0o077 for path in home.path.iterdir() if path.is_dir()}
    assert folders == {"artifacts": 0, "workspaces": 0, "logs": 0}
    assert home.path.stat().st_mode & 0o077 == (0o011 if os.geteuid() == 0 else 0)  # root's Postgres is another user, who passes through
    home.logs.chmod(0o750)
    home.prepare()
    assert home.logs.stat().st_mode & 0o777 == 0o750


def test_state_survives_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.state() is None
    state = State(1, "running", 2, 5432, 4222, (ProcessState("research", "research", "ready", 3, 0),))
    home.write_state(state)
    assert home.state() == state
    (tmp_path / "state.json").write_text("{")
    assert home.state() is None


def test_a_large_log_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crewlog.orchestrator.home.LOG_BYTES_MAX", 3)
    home = Home(tmp_path)
    home.prepare()
    home.open_log("a").write_text("long")
    assert not home.open_log("a").exists()
    assert (tmp_path / "logs" / "a.log.1").read_text() == "long"


async def test_waiting_for_the_end_of_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdin is not None
        assert not await wait_gone(process.pid, timeout_s=0.01)
        process.stdin.close()
        assert await wait_gone(process.pid, timeout_s=10)
    assert await wait_gone(process.pid, timeout_s=0)
