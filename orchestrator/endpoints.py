"""Where the servers are and who logs in: from the configuration when it names them, else from the home folder of a running `crewlog up`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.events.whereabouts import Whereabouts
from crewlog.orchestrator.home import Home, State
from crewlog.schemas.errors import Unavailable

if TYPE_CHECKING:
    from pydantic import SecretStr

    from crewlog.events.config import Config


def role_of(process: str) -> str:
    """Return the role of a process: built-in kinds have their own, a user's kind is a `specialist`."""
    return process if process in (*BUILT_IN_KINDS, "orchestrator", "projector", "operator") else "specialist"


def with_login(config: Config, process: str) -> Config:
    """Fill in the addresses that the configuration leaves out, with the credentials of this kind of process.

    Raises:
        Unavailable: the home has no running servers.
    """
    from pydantic import SecretStr

    if config.database_url is not None and config.nats_url is not None:
        return config
    state = _running(config.home)
    credentials, role = load_credentials(config.home), role_of(process)
    found: dict[str, SecretStr] = {}
    if config.database_url is None and state.database_port is not None:
        found["database_url"] = SecretStr(credentials.postgres_url(f"crewlog_{role}", state.database_port))
    if config.nats_url is None and state.nats_port is not None:
        found["nats_url"] = SecretStr(credentials.nats_url(role, state.nats_port))
    return config.model_copy(update=found)


def nats_url(config: Config, user: Literal["operator", "client"]) -> SecretStr:
    """Return the address of NATS for what a person or program does with it. One in the configuration is taken as it is: its login is what counts.

    Raises:
        Unavailable: the home has no running NATS server.
    """
    from pydantic import SecretStr

    if config.nats_url is not None:
        return config.nats_url
    port = _running(config.home).nats_port
    assert port is not None, "a crew without a server of its own has an address in its configuration"
    return SecretStr(load_credentials(config.home).nats_url(user, port))


def database_url(config: Config, role: Literal["operator", "archivist", "reader"]) -> str:
    """Return the address of the database for what a person does with it.

    An address in the configuration is taken as it is, that of the role before that of everything else: its login is the one whose rights count.

    Raises:
        Unavailable: none is configured and the home has no running server.
    """
    own = {"archivist": config.archivist_url, "reader": config.reader_url}.get(role)
    given = own or config.database_url
    return database_at(Whereabouts(config.home, None if given is None else given.get_secret_value()), role)


def database_at(where: Whereabouts, role: str) -> str:
    """Return the address that is given, else that of the embedded database for a login.

    Raises:
        Unavailable: none is given and the home has no running server.
    """
    if where.database_url is not None:
        return where.database_url
    state = _running(where.home)
    assert state.database_port is not None
    return load_credentials(where.home).postgres_url(f"crewlog_{role}", state.database_port)


def owner_url(config: Config) -> str:
    """Return the address that may change the database's schema.

    Raises:
        Unavailable: none is configured and the home has no running server.
    """
    if config.database_url is not None:
        return config.database_url.get_secret_value()
    state = _running(config.home)
    assert state.database_port is not None
    return load_credentials(config.home).postgres_url(ADMIN, state.database_port)


def _running(folder: Path) -> State:
    home = Home(folder)
    state = home.state()
    if state is None or state.phase == "stopped" or home.holder() is None:
        raise Unavailable(
            f"no crew runs in {home.path}\nstart one with `crewlog up`, name its folder with --home, or set CREWLOG_DATABASE_URL and CREWLOG_NATS_URL"
        )
    return state
