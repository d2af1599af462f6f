from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.toolbox import MemoryArtifacts

from crewlog.orchestrator import attachments
from crewlog.orchestrator.attachments import collect, upload
from crewlog.schemas.errors import ContractError, LimitExceeded, NotFound


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def test_a_file_is_called_by_its_name_and_a_folder_keeps_its_own(tmp_path: Path) -> None:
    _tree(tmp_path, "a.csv", "project/src/main.py", "project/tests/test_main.py")
    assert [f.name for f in collect([tmp_path / "a.csv", tmp_path / "project"])] == ["a.csv", "project/src/main.py", "project/tests/test_main.py"]


def test_history_caches_environments_and_links_are_left_out(tmp_path: Path) -> None:
    left_out = (".git/config", "__pycache__/main.pyc", ".venv/pyvenv.cfg", "env/pyvenv.cfg", "env/lib/x.py", "node_modules/x/y.js")
    project = _tree(tmp_path / "p", "main.py", *left_out)
    (project / "secret").symlink_to("/etc/passwd")
    (project / "elsewhere").symlink_to("/etc")
    assert [f.name for f in collect([project])] == ["p/main.py"]


def test_a_folder_may_be_given_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_tree(tmp_path / "work", "main.py"))
    assert [f.name for f in collect([Path()])] == ["work/main.py"]


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nothing\.csv"):
        collect([tmp_path / "nothing.csv"])
    with pytest.raises(NotFound, match=r"~no-such-user/a\.csv"):
        collect([Path("~no-such-user/a.csv")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContractError, match="pipe is neither a file nor a folder"):
        collect([tmp_path / "pipe"])


def test_a_name_that_is_no_unicode_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "p") + b"/caf\xe9.txt")).write_text("x")
    [found] = collect([tmp_path / "p"])
    assert found.name == "p/caf\N{REPLACEMENT CHARACTER}.txt"
    assert found.path.read_text() == "x"
    assert collect([found.path])[0].name == "caf\N{REPLACEMENT CHARACTER}.txt"


@pytest.mark.parametrize("name", ["two\nlines.csv", "\x1b[31mred.csv", "back\\slash.csv"])
def test_a_file_whose_name_no_task_can_use_is_named(tmp_path: Path, name: str) -> None:
    path = _tree(tmp_path, name) / name
    for given in (path, tmp_path):
        with pytest.raises(ContractError, match=re.escape(f"the file {str(path)!r} cannot be attached: its name must be a relative path")):
            collect([given])


async def test_a_file_that_grows_past_the_limit_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "FILE_BYTES_MAX", 10)
    found = collect([_tree(tmp_path, "grows") / "grows"])
    found[0].path.write_text("x" * 1_000)
    with pytest.raises(LimitExceeded, match="bytes of attachment grows reached: 11 of 10"):
        await upload(found, MemoryArtifacts())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="holds no files"):
        collect([_tree(tmp_path / "p", ".git/config")])


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    _tree(tmp_path, "one/a.csv", "two/a.csv")
    with pytest.raises(ContractError, match=r"'a\.csv'"):
        collect([tmp_path / "one/a.csv", tmp_path / "two/a.csv"])


@pytest.mark.parametrize(("limit", "value"), [("FILES_MAX", 1), ("FILE_BYTES_MAX", 3), ("TOTAL_BYTES_MAX", 6)])
def test_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(attachments, limit, value)
    with pytest.raises(LimitExceeded):
        collect([_tree(tmp_path / "p", "aaaa", "bbbb")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_said_and_not_left_out(tmp_path: Path) -> None:
    shut = _tree(tmp_path / "p", "main.py", "shut/notes.txt") / "shut"
    shut.chmod(0)
    try:
        with pytest.raises(ContractError, match=r"shut.* cannot be attached: Permission denied"):
            collect([tmp_path / "p"])
    finally:
        shut.chmod(0o700)


async def test_a_file_that_is_gone_by_now_is_named(tmp_path: Path) -> None:
    found = collect([_tree(tmp_path, "a.csv") / "a.csv"])
    found[0].path.unlink()
    with pytest.raises(ContractError, match=r"a\.csv cannot be attached: No such file or directory; it must be a file that can be read"):
        await upload(found, MemoryArtifacts())


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert [f.name for f in collect([str(_tree(tmp_path, "a.csv") / "a.csv")])] == ["a.csv"]
