"""Folders of children: gone with them, and with the next worker when their process was killed, but never below somebody who uses them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from crewlog.agents.scratch import remove_left, scratch

HOLDER: Final = """
import sys
from pathlib import Path
from crewlog.agents.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "locked" / "deep").mkdir(parents=True)
    (folder / "locked").chmod(0)
    (folder / "out").symlink_to(sys.argv[2])
    print(folder, flush=True)
    sys.stdin.read()
"""
"""Another worker: uses a folder until its input ends."""


def test_scratch_folders_go_away(tmp_path: Path) -> None:
    with scratch(tmp_path / "a" / "b") as folder:
        (folder / "x").symlink_to("/etc")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_that_was_there_or_holds_something_else_stays(tmp_path: Path) -> None:
    with scratch(tmp_path / "a"), scratch(tmp_path / "a") as beside:
        (tmp_path / "a" / "kept").touch()
    assert not beside.exists()
    assert [place.name for place in (tmp_path / "a").iterdir()] == ["kept"]
    (tmp_path / "a" / "kept").unlink()
    with scratch(tmp_path / "a"):
        pass
    assert (tmp_path / "a").exists()


DEEP: Final = """
import os, sys
os.chdir(sys.argv[1])
for n in range(int(sys.argv[3])):
    os.mkdir(sys.argv[2])
    os.mkdir("beside")
    open("file", "w").close()
    os.chdir(sys.argv[2])
os.chmod(".", 0)
os.chmod(sys.argv[1], 0)
"""


@pytest.mark.parametrize(("name", "times"), [("d" * 250, 20), ("d", 1_900)], ids=["longer than a path", "deeper than a stack"])
def test_folders_in_folders_go_away_however_deep(tmp_path: Path, name: str, times: int) -> None:
    try:
        with scratch(tmp_path / "a") as folder:
            subprocess.run([sys.executable, "-c", DEEP, folder, name, str(times)], check=True)
        assert not (tmp_path / "a").exists()
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # pytest could not


def below(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@contextmanager
def another_worker(parent: Path, beside: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    argv = [sys.executable, "-c", HOLDER, str(parent), str(beside)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    workspaces, outside = tmp_path / "workspaces", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    with another_worker(workspaces / "a", outside) as (killed, left), another_worker(workspaces / "b", outside) as (_, used):
        with scratch(workspaces / "a") as mine:
            killed.kill()
            killed.wait()
            assert left.exists()

            assert remove_left(workspaces) == 1

            assert sorted(workspaces.glob("*/*")) == sorted([mine, used])
        assert remove_left(workspaces) == 0
        assert used.exists()
    assert not used.exists()
    assert (outside / "kept").exists()


def test_a_folder_of_a_task_goes_with_the_last_that_was_left_in_it(tmp_path: Path) -> None:
    with another_worker(tmp_path / "a", tmp_path) as (killed, _):
        killed.kill()
        killed.wait()
        assert remove_left(tmp_path) == 1
    assert below(tmp_path) == []


def test_what_is_no_folder_of_a_child_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a" / "report").mkdir(parents=True)
    (tmp_path / "a" / "child-of-nobody").symlink_to(tmp_path / "a" / "report")
    (tmp_path / "child-folder" / "x").mkdir(parents=True)
    assert remove_left(tmp_path) == 0
    assert len(list(tmp_path.rglob("*"))) == 5
    assert "child-of-nobody" in caplog.text


def test_an_empty_folder_of_a_task_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "file").touch()
    assert remove_left(tmp_path) == 0
    assert below(tmp_path) == [tmp_path / "file"]


def test_there_may_be_no_workspaces(tmp_path: Path) -> None:
    assert remove_left(tmp_path / "none") == 0


def test_many_that_begin_and_end_while_others_clean_up_lose_nothing(tmp_path: Path) -> None:
    def use(number: int) -> None:
        for _ in range(50):
            with scratch(tmp_path / f"t{number % 2}") as folder:
                (folder / "mine").touch()
                assert {place.name for place in folder.iterdir()} == {"mine", "tmp"}

    def clean() -> None:
        for _ in range(50):
            remove_left(tmp_path)

    with ThreadPoolExecutor(5) as pool:
        for done in [*(pool.submit(use, number) for number in range(4)), pool.submit(clean)]:
            done.result()
    assert [place for folder in below(tmp_path) for place in below(folder)] == []
