"""Addresses of Postgres: which are taken, and that a malformed one shows nothing of its password."""

from __future__ import annotations

import pytest

from crewlog.events.clock import SystemClock
from crewlog.events.connections import Connections, connector
from crewlog.events.migrate import connect, ensure_database
from crewlog.events.postgres_hosts import check_address
from crewlog.projections.view_connection import connect_views
from crewlog.schemas.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h/d",
        "postgres://u:p%2F%40@h:5432,other/d?sslmode=require",
        "postgresql://u:p:q@[::1]:5432/d",
        "postgresql://u@[fe80::1%eth0]/d",
        "postgresql:///d?host=/run/postgresql",
    ],
)
def test_addresses_of_all_forms_are_taken(url: str) -> None:
    check_address(url)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "postgresql://u:s3cr/et@h:1/d",
            "postgresql://u:s3cr#et@h/d",
            "postgresql://u:s3cr?et@h/d",
            "postgresql://u:s3[cret@h/d",
            "postgresql://u:123/s3cret@h/d",
        ),
        *("u:s3cret@h/d", "http://u:s3cret@h/d", "postgresql://u:s3cret@h:99999/d", "postgresql://u:s3cret@a:1,b:x/d"),
    ],
)
async def test_a_malformed_one_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_address(url)
    told = [refused.value]
    for opening in (
        connect(url),
        ensure_database(url),
        connect_views(url, "rm"),
        Connections(connector(url, application="x"), SystemClock(), size=1).fetch("look", ""),
    ):
        with pytest.raises(ConfigError) as refused:
            await opening
        told.append(refused.value)
    assert not any("s3" in str(error) for error in told)
