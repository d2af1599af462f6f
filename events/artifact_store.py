"""Artifacts in a local folder or an S3 bucket, by one library: a file is stored once, under the sha-256 of its bytes.

Keys are `<first two digits>/<hash>`. Each write is atomic and of the same bytes, so two writers cannot disturb each other; reading checks the bytes
against the hash. The library is loaded with the first file: a worker that has nothing to do holds memory only for what it
needs to wait.
"""

from __future__ import annotations

import asyncio
import mimetypes
import unicodedata
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewlog.schemas.errors import ConfigError, LimitExceeded, NotFound, TerminalError, Unavailable
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash, is_hash
from crewlog.schemas.text import clean
from crewlog.schemas.values import ArtifactRef

if TYPE_CHECKING:
    from obstore.store import ObjectStore

ARTIFACT_BYTES_MAX: Final = 64 * 1024 * 1024
NAME_CHARS_MAX: Final = 512
UNKNOWN_MEDIA_TYPE: Final = "application/octet-stream"

_MEDIA_TYPES: Final = {
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".diff": "text/x-diff",
    ".patch": "text/x-diff",
    ".eml": "message/rfc822",
}
"""What the standard library does not know, or knows on some machines only."""


async def open_artifacts(url_or_path: str | Path) -> ObjectArtifacts:
    """Open a store: a folder, which is made when missing, or `s3://bucket/prefix` with credentials from the environment.

    Raises:
        ConfigError: the folder cannot be written, or the url is not understood.
    """
    return await asyncio.to_thread(_open, url_or_path)


def _open(url_or_path: str | Path) -> ObjectArtifacts:
    if isinstance(url_or_path, str) and "://" in url_or_path:
        if not url_or_path.startswith("s3://"):
            raise ConfigError(f"artifacts: {url_or_path.partition('://')[0]}:// is not supported", hint="use a folder or s3://bucket/prefix")
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        try:
            return ObjectArtifacts(S3Store.from_url(url_or_path), where=url_or_path)
        except BaseError as error:
            raise ConfigError(f"artifacts in {url_or_path}: {_first_line(error)}", hint="use s3://bucket/prefix and the AWS_… variables") from None
    folder = Path(url_or_path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return ObjectArtifacts(folder, where=str(folder))
    except OSError as error:
        raise ConfigError(f"artifacts: cannot use {folder}: {error.strerror or error}", hint="set CREWLOG_HOME to a writable folder") from None


class ObjectArtifacts:
    """The `ArtifactStore` over any object store."""

    def __init__(self, store: ObjectStore | Path, *, where: str) -> None:
        """Wrap a store, or a folder that is there; `where` names it in error texts."""
        self._given = store
        self._where = where

    @cached_property
    def _store(self) -> ObjectStore:
        if not isinstance(self._given, Path):
            return self._given
        from obstore.store import LocalStore

        return LocalStore(self._given)

    async def put(self, name: str, data: bytes, media_type: str | None = None) -> ArtifactRef:
        """Store a file under its hash; see `ArtifactStore`.

        Args:
            name: what people and workspaces call it; cleaned by `clean_name`.

        Raises:
            LimitExceeded: it is larger than `ARTIFACT_BYTES_MAX`.
            Unavailable: the store could not be written.
        """
        if len(data) > ARTIFACT_BYTES_MAX:
            raise LimitExceeded("artifact_bytes", used=len(data), limit_max=ARTIFACT_BYTES_MAX)
        from obstore.exceptions import BaseError

        name, hash_ = clean_name(name), content_hash(data)
        try:
            await self._create(_key(hash_), data)
        except (BaseError, OSError) as error:
            failed = f"storing artifact {name!r} ({hash_[:12]}) in {self._where}: {_first_line(error)}"
            raise Unavailable(f"{failed}\nsee whether that place can be reached and written, and has room; then do the same again") from None
        return ArtifactRef(name, hash_, len(data), media_type or guess_media_type(name))

    async def get(self, hash_: Hash | str) -> bytes:
        if not is_hash(hash_):
            raise NotFound("artifact", hash_)
        import obstore
        from obstore.exceptions import BaseError

        try:
            result = await obstore.get_async(self._store, _key(hash_))
            data = bytes(await result.bytes_async())
        except FileNotFoundError:
            raise NotFound("artifact", hash_) from None
        except (BaseError, OSError) as error:
            raise Unavailable(f"reading artifact {hash_[:12]} from {self._where}: {_first_line(error)}") from None
        if content_hash(data) != hash_:
            raise TerminalError(f"artifact {hash_} in {self._where} is damaged: its {len(data)} bytes have hash {content_hash(data)}; store the file again")
        return data

    async def delete(self, hash_: Hash) -> bool:
        if not is_hash(hash_):
            return False
        import obstore
        from obstore.exceptions import BaseError

        try:
            await obstore.head_async(self._store, _key(hash_))
            await obstore.delete_async(self._store, _key(hash_))
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise Unavailable(f"deleting artifact {hash_[:12]} from {self._where}: {_first_line(error)}") from None
        return True

    async def untouched(self, before: datetime) -> list[tuple[Hash, int]]:
        """List files that nobody has put since `before`, with their sizes.

        Raises:
            Unavailable: the store cannot be read.
        """
        import obstore
        from obstore.exceptions import BaseError

        try:
            found = [entry async for page in obstore.list(self._store) for entry in page]
        except (BaseError, OSError) as error:
            raise Unavailable(f"listing {self._where}: {_first_line(error)}") from None
        names = ((entry["path"].rpartition("/")[2], entry) for entry in found if entry["last_modified"] < before)
        return [(Hash(name), entry["size"]) for name, entry in names if is_hash(name)]

    async def _create(self, key: str, data: bytes) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            await obstore.put_async(self._store, key, data, mode="create")
        except AlreadyExistsError:
            # it is the same file, unless a power cut left one that is too short. Written anew either way: its time says when somebody needed it last
            await obstore.put_async(self._store, key, data, mode="overwrite")


def clean_name(name: str) -> str:
    """Turn any text into a relative path that no workspace is left by: the rules of `schemas.checks.RelativePath`.

    >>> clean_name("/etc/../plots\\\\a b.svg"), clean_name("..")
    ('etc/plots/a b.svg', 'unnamed')
    """
    text = "".join(c for c in clean(name).replace("\\", "/") if unicodedata.category(c) != "Cc")
    parts = [part for part in (part.strip() for part in text.split("/")) if part not in {"", ".", ".."}]
    return "/".join(parts)[-NAME_CHARS_MAX:].lstrip("/") or "unnamed"


def guess_media_type(name: str) -> str:
    """Guess from the ending of a name."""
    return _MEDIA_TYPES.get(Path(name).suffix.lower()) or mimetypes.guess_type(name)[0] or UNKNOWN_MEDIA_TYPE


def _key(hash_: str) -> str:
    return f"{hash_[:2]}/{hash_}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
