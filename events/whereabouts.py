"""The two settings that reading the log needs: the home folder and the database. Found without loading the whole configuration.

Validating every setting takes longer than looking at a run does. Sources, names and their order are those of `config`; a test holds
the two together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crewlog.schemas.errors import ConfigError

_PREFIX: Final = "CREWLOG_"
NO_FOLDER: Final = "it is empty: name a folder; . is the current one"
"""As of a variable that nobody set; a crew would be made wherever one happens to be."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a crew is. `database_url` is None while nobody says it: then the database is the one that runs in the home folder."""

    home: Path
    database_url: str | None = field(default=None, repr=False)


def default_home() -> Path:
    """Return where embedded servers, artifacts and logs live when nothing else is said.

    Root gets a folder that other users may traverse, because Postgres must not run as root.
    """
    return Path("/var/lib/crewlog") if os.geteuid() == 0 else _user_folder("data")


def user_file() -> Path:
    """Return where a user's settings are, for every folder that has no `crewlog.toml` of its own or leaves them open."""
    return _user_folder("config") / "crewlog.toml"


def _user_folder(kind: str) -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("crewlog") if kind == "data" else platformdirs.user_config_dir("crewlog"))


def find_whereabouts(home: Path | None = None) -> Whereabouts:
    """Say where the crew is.

    Args:
        home: from the command line; None reads the configuration.

    Raises:
        ConfigError: a file is no TOML, or one of the two settings is no text, or the home is empty.
    """
    sources = list(_sources())
    named = home if home is not None else _first(sources, "home")
    if named == "":
        raise ConfigError(f"configuration: home: {NO_FOLDER}", hint="leave CREWLOG_HOME unset for the user's data folder")
    return Whereabouts(default_home() if named is None else Path(named), _first(sources, "database_url"))


def _sources() -> Iterator[Mapping[str, Any]]:
    yield {name[len(_PREFIX) :].lower(): value for name, value in os.environ.items() if name.upper().startswith(_PREFIX)}
    for path in (Path("crewlog.toml"), user_file()):
        if path.is_file():
            import tomllib  # most crews have no such file, and loading this takes as long as finding that out

            try:
                yield tomllib.loads(path.read_text())
            except tomllib.TOMLDecodeError as error:
                raise ConfigError(f"a crewlog.toml is not TOML: {error}", hint=f"settings are read from ./crewlog.toml and {user_file()}") from None


def _first(sources: list[Mapping[str, Any]], name: str) -> str | None:
    found = next((source[name] for source in sources if name in source), None)
    if found is not None and not isinstance(found, str):
        raise ConfigError(f"configuration: {name} must be text, got {type(found).__name__}", hint="look into crewlog.toml")
    return found
