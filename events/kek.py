"""Where the key-encryption key comes from: `CREWLOG_PERSON_KEK`, or the file `person.kek` in the home folder, which `crewlog up` makes.

It is not in the database, and belongs into no backup that holds the database: whoever has both reads everything. Lost, all that it protects
is lost as if it had been erased.
"""

from __future__ import annotations

import os
import tempfile
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewlog.events.credentials import sync_folder
from crewlog.events.envelope import KEY_BYTES, KeyEncryptionKey, new_secret
from crewlog.schemas.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import SecretStr

FILE: Final = "person.kek"
VARIABLE: Final = "CREWLOG_PERSON_KEK"
HINT: Final = f"set {VARIABLE} to the 32 bytes in base64 that this crew has used so far, or restore {FILE} in its home folder"

LoadKek = Callable[[], KeyEncryptionKey]
"""Called once, when the first data key must be wrapped or unwrapped: a process that meets none needs no key-encryption key."""


def kek_source(given: SecretStr | None, home: Path) -> LoadKek:
    """Return a function that reads the key-encryption key from the configuration, else from the home folder."""

    def load() -> KeyEncryptionKey:
        if given is not None:
            return KeyEncryptionKey(_secret(given.get_secret_value(), VARIABLE))
        return KeyEncryptionKey(_read(home / FILE))

    return load


def make_kek(home: Path) -> bool:
    """Make the file with a fresh key, unless there is one; returns whether it did.

    Raises:
        ConfigError: the file is readable by others, damaged, or cannot be written.
    """
    path = home / FILE
    if path.exists():
        _read(path)
        return False
    try:
        handle, temporary = tempfile.mkstemp(dir=home, prefix=".person-kek-")  # mkstemp makes the file 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(b64encode(new_secret()) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # never in place of another one: that may be in use already
        finally:
            Path(temporary).unlink()
        sync_folder(home)
    except FileExistsError:
        _read(path)
        return False
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror}", hint="CREWLOG_HOME must be a folder that you may read and write") from error
    return True


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"key file {path} may be read by others", hint=f"run: chmod 600 {path}")
        return _secret(path.read_text(), f"key file {path}")
    except FileNotFoundError:
        raise ConfigError(f"there is no key-encryption key: {VARIABLE} is not set and {path} does not exist", hint=HINT) from None
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror}", hint=HINT) from error


def _secret(text: str, where: str) -> bytes:
    try:
        secret = b64decode(text.strip(), validate=True)
    except (Base64Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"{where} is no key: it must be {KEY_BYTES} bytes in base64", hint=HINT)
    return secret
