"""Connect to Postgres where an address names several hosts: to the one that takes writes now.

    postgresql://user:password@one:5432,two:5432/crewlog

The hosts are tried one by one, each with a time of its own, the last good one first: a host that is silent must not use up the time of the
others. A former primary that comes back still takes itself for the primary: whoever has seen a later timeline leaves it alone. A process
that is new cannot know, so whoever promotes a standby must see to it that the old primary stays away.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from crewlog.schemas.errors import ConfigError

CONNECT_TIMEOUT_S: Final = 5.0
HOST_TIMEOUT_S: Final = 2.0
"""How long one of several hosts may take to answer, in seconds."""
CLUSTERS_MAX: Final = 64
_TIMELINE: Final = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int"
_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]]*)(?::(?P<port>\d{1,5}))?")
_HINT: Final = "expected postgresql://user:password@host:port/database in CREWLOG_DATABASE_URL; in a password, / is written %2F, # %23, ? %3F and @ %40"


def check_address(url: str) -> None:
    """Check that an address can be taken apart. Whoever finds out later shows what he found in the place of a port: part of a password.

    Raises:
        ConfigError: it cannot. The error shows nothing of it.
    """
    try:
        parts = urlsplit(url)
        hosts = [_HOST.fullmatch(host.strip()) for host in parts.netloc.rpartition("@")[2].split(",")]
        is_good = parts.scheme in {"postgresql", "postgres"} and all(hosts) and "@" not in parts.path
        is_good = is_good and all(int(host["port"] or 0) < 65_536 for host in hosts if host)
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError("the address of Postgres is malformed", hint=_HINT)


def split_hosts(url: str) -> tuple[str, ...]:
    """Return one address for each host that an address names.

    Raises:
        ConfigError: it is malformed.

    >>> split_hosts("postgresql://u:p@a:1,b:2/db")
    ('postgresql://u:p@a:1/db?target_session_attrs=primary', 'postgresql://u:p@b:2/db?target_session_attrs=primary')
    """
    check_address(url)
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return (url,)
    query = urlencode({**dict(parse_qsl(parts.query)), "target_session_attrs": "primary"})
    return tuple(urlunsplit(parts._replace(netloc=f"{login}{at}{host.strip()}", query=query)) for host in hosts.split(",") if host.strip())


class Cluster:
    """The hosts of one address, and what this process has seen of them."""

    def __init__(self, url: str) -> None:
        self._urls = split_hosts(url)
        self._timeline = 0

    async def connect(self, server_settings: Mapping[str, str]) -> Any:
        """Open a connection to the host that takes writes.

        Raises:
            Exception: what the client library raises: with several hosts, that of the last one.
        """
        if len(self._urls) == 1:
            return await asyncpg.connect(self._urls[0], timeout=CONNECT_TIMEOUT_S, server_settings=dict(server_settings))
        failure: Exception | None = None
        for url in self._urls:
            try:
                return await self._open(url, server_settings)
            except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
                failure = error
        assert failure is not None
        raise failure

    async def _open(self, url: str, server_settings: Mapping[str, str]) -> Any:
        connection = await asyncpg.connect(url, timeout=HOST_TIMEOUT_S, server_settings=dict(server_settings))
        try:
            async with asyncio.timeout(HOST_TIMEOUT_S):
                timeline: int = await connection.fetchval(_TIMELINE)
            if timeline < self._timeline:
                raise ConnectionError(f"{urlsplit(url).hostname} is a former primary: it is on timeline {timeline}, the log goes on in {self._timeline}")
        except BaseException:
            connection.terminate()
            raise
        self._timeline = timeline
        self._urls = (url, *(other for other in self._urls if other != url))
        return connection


@lru_cache(CLUSTERS_MAX)
def cluster(url: str) -> Cluster:
    """Return what this process knows of an address: the same for all of its connections."""
    return Cluster(url)
