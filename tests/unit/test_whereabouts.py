"""The short way to the home folder and the database says what the whole configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from crewlog.events.config import load
from crewlog.events.whereabouts import find_whereabouts
from crewlog.schemas.errors import ConfigError

SOURCES = {
    "nothing": ({}, "", ""),
    "environment": ({"CREWLOG_HOME": "/a", "CREWLOG_DATABASE_URL": "postgresql://a"}, 'home = "/b"\n', 'home = "/c"\n'),
    "small letters": ({"crewlog_home": "/a"}, "", ""),
    "the folder's file": ({}, 'home = "/b"\nuser = "ann"\n', 'home = "/c"\ndatabase_url = "postgresql://c"\n'),
    "the user's file": ({}, "", 'database_url = "postgresql://c"\n'),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own, and a user without settings."""
    for name in ("CREWLOG_HOME", "CREWLOG_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "crewlog").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("given", [None, Path("/d")])
def test_both_ways_agree(name: str, given: Path | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, own, users = SOURCES[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    (folder / "crewlog.toml").write_text(own)
    (folder / "config" / "crewlog" / "crewlog.toml").write_text(users)

    found, config = find_whereabouts(given), load(home=given) if given else load()

    assert found.home == config.home
    assert found.database_url == (config.database_url.get_secret_value() if config.database_url else None)
    assert "postgresql" not in repr(found)


@pytest.mark.parametrize("text", ["home = [", "home = 7\n", 'home = ""\n'])
def test_what_is_no_setting_is_refused(text: str, folder: Path) -> None:
    (folder / "crewlog.toml").write_text(text)
    with pytest.raises(ConfigError):
        find_whereabouts()
    with pytest.raises(ConfigError):
        load()
