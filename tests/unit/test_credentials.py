from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
import pytest

from crewlog.events.credentials import ADMIN, NATS_USERS, POSTGRES_ROLES, Credentials, load_credentials, scram_verifier
from crewlog.events.grants import ROLES
from crewlog.schemas.errors import ConfigError


def test_they_are_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    first = load_credentials(tmp_path / "home")
    path = tmp_path / "home" / "credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert load_credentials(tmp_path / "home") == first
    assert set(first.postgres) == {ADMIN, *ROLES}
    assert set(first.nats) == set(NATS_USERS)
    passwords = [*first.postgres.values(), *first.nats.values()]
    assert len(set(passwords)) == len(passwords)
    assert min(map(len, passwords)) >= 32


def test_what_a_newer_program_needs_is_added(tmp_path: Path) -> None:
    first = load_credentials(tmp_path)
    path = tmp_path / "credentials.json"
    path.write_bytes(msgspec.json.encode({"postgres": {ADMIN: first.postgres[ADMIN]}, "nats": {}}))
    path.chmod(0o600)
    second = load_credentials(tmp_path)
    assert second.postgres[ADMIN] == first.postgres[ADMIN]
    assert set(second.postgres) == set(POSTGRES_ROLES)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    load_credentials(tmp_path)
    (tmp_path / "credentials.json").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_credentials(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"postgres": 1, "nats": {}}', b'{"postgres": {}}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "credentials.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="damaged"):
        load_credentials(tmp_path)
    assert path.read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="CREWLOG_HOME"):
        load_credentials(tmp_path / "home")


def test_a_home_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(ConfigError, match="CREWLOG_HOME"):
        load_credentials(tmp_path / "home")


def test_urls_quote_the_password() -> None:
    credentials = Credentials(postgres={"crewlog_data": "p@s/s:%?"}, nats={"data": "p@s/s:%?"})
    for url, port in ((credentials.postgres_url("crewlog_data", 5), 5), (credentials.nats_url("data", 6), 6)):
        parts = urlsplit(url)
        assert (unquote(parts.password or ""), parts.hostname, parts.port) == ("p@s/s:%?", "127.0.0.1", port)
    assert credentials.postgres_url("crewlog_data", 5).endswith("/crewlog")


def test_postgres_is_told_a_verifier_and_not_the_password() -> None:
    first, second = scram_verifier("secret"), scram_verifier("secret")
    assert first != second, "each has a salt of its own"
    assert re.fullmatch(r"SCRAM-SHA-256\$4096:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=", first)
    assert scram_verifier("Schl\u00fcssel", b"salt") == scram_verifier("Schlu\u0308ssel", b"salt"), "both spellings are one password"
    assert "Schl" not in scram_verifier("Schl\u00fcssel")
