"""Passwords of the embedded servers: made once, kept in `<home>/credentials.json`, readable by the owner only; and what Postgres is told of one."""

from __future__ import annotations

import hmac
import os
import secrets
import stringprep
import tempfile
import unicodedata
from base64 import b64encode
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from crewlog.events.grants import BUILT_IN_KINDS, ROLES
from crewlog.schemas.errors import ConfigError

ADMIN: Final = "crewlog_admin"
"""Superuser of the embedded Postgres; only the supervisor logs in with it."""
DATABASE: Final = "crewlog"
POSTGRES_ROLES: Final = (ADMIN, *ROLES)
NATS_USERS: Final = ("orchestrator", "projector", *BUILT_IN_KINDS, "specialist", "operator", "client", "supervisor")


_FORBIDDEN: Final = (
    *(stringprep.in_table_a1, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4),
    *(stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9),
)
"""Tables of RFC 3454 whose characters RFC 4013 forbids, and those of code points that were unassigned."""
_SALT_BYTES: Final = 16
_ITERATIONS: Final = 4096
"""Both as Postgres itself makes them."""


class Credentials(msgspec.Struct, frozen=True):
    """One password for every Postgres login and every NATS user."""

    postgres: dict[str, str]
    nats: dict[str, str]

    def postgres_url(self, role: str, port: int, database: str = DATABASE) -> str:
        """Return the URL with which `role` reaches the embedded Postgres."""
        return f"postgresql://{role}:{quote(self.postgres[role], safe='')}@127.0.0.1:{port}/{database}"

    def nats_url(self, user: str, port: int) -> str:
        """Return the URL with which `user` reaches the embedded NATS server."""
        return f"nats://{user}:{quote(self.nats[user], safe='')}@127.0.0.1:{port}"


def load_credentials(home: Path) -> Credentials:
    """Read `<home>/credentials.json`; make it, or add what a newer program needs, when something is missing.

    Raises:
        ConfigError: the file is readable by others, damaged, or cannot be written.
    """
    path = home / "credentials.json"
    try:
        known = _read(path)
        complete = Credentials(
            postgres={role: known.postgres.get(role) or secrets.token_urlsafe(24) for role in POSTGRES_ROLES},
            nats={user: known.nats.get(user) or secrets.token_urlsafe(24) for user in NATS_USERS},
        )
        if complete != known:
            _write(path, complete)
    except OSError as error:
        raise ConfigError(f"credentials file {path}: {error.strerror}", hint="CREWLOG_HOME must be a folder that you may read and write") from error
    return complete


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what Postgres keeps of a password (RFC 5803), and takes in its place: so the password is in no statement, and in no server's log.

    Args:
        salt: None makes one.
    """
    salt = salt or secrets.token_bytes(_SALT_BYTES)
    salted = pbkdf2_hmac("sha256", _prepared(password).encode(), salt, _ITERATIONS)
    stored_key = sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored, server = (b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${_ITERATIONS}:{salt_text}${stored}:{server}"


def _prepared(password: str) -> str:
    """Return the spelling that stands for all of a password (SASLprep, RFC 4013): itself, where that forbids it. Postgres looks for what is forbidden
    before it normalises."""
    mapped = "".join(" " if stringprep.in_table_c12(char) else char for char in password if not stringprep.in_table_b1(char))
    right_to_left = [stringprep.in_table_d1(char) for char in mapped]
    is_mixed = any(right_to_left) and (not (right_to_left[0] and right_to_left[-1]) or any(map(stringprep.in_table_d2, mapped)))
    is_forbidden = any(in_table(char) for char in mapped for in_table in _FORBIDDEN)
    return password if password.isascii() or not mapped or is_mixed or is_forbidden else unicodedata.normalize("NFKC", mapped)


def _read(path: Path) -> Credentials:
    if not path.exists():
        return Credentials({}, {})
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"credentials file {path} may be read by others", hint=f"run: chmod 600 {path}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credentials)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"credentials file {path} is damaged: {error}", hint="restore it; the embedded servers only know the passwords in it") from error


def _write(path: Path, credentials: Credentials) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".credentials-")  # mkstemp makes the file 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(credentials), indent=2))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that a power cut does not take away the name of a file that was just made: what is locked with it would stay locked.

    Raises:
        OSError: the folder cannot be read or written.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
