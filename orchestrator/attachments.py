"""Files and folders that a person hands over with a goal: found, named, limited and stored content-addressed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from crewlog.events.artifacts import ArtifactStore
from crewlog.orchestrator.client_given import must_be
from crewlog.schemas.checks import relative_path
from crewlog.schemas.errors import ContractError, LimitExceeded, NotFound
from crewlog.schemas.task import Attachment

FILES_MAX: Final = 500
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
TOTAL_BYTES_MAX: Final = 256 * 1024 * 1024
SKIPPED_FOLDERS: Final = frozenset(
    {".git", ".hg", ".svn", "__pycache__", ".venv", "venv", "node_modules", ".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
)
_UPLOADS_AT_ONCE: Final = 8


class Found(NamedTuple):
    """A file to attach, and the relative name under which tasks see it."""

    name: str
    path: Path


def collect(paths: Iterable[Path | str]) -> list[Found]:
    """Find the files of a submission.

    A file is called by its name, a file in a folder by its path from the folder on, the folder's own name included. Version control,
    caches and virtual environments are left out; symbolic links inside folders are not followed, since they could lead anywhere.

    Raises:
        NotFound: a path does not exist.
        ContractError: two files would have the same name, no task can use the name of one, a folder is empty, or a path is a pipe, a device or a
            socket, cannot be read, or is no path at all.
        LimitExceeded: too many or too large files.
    """
    try:
        found = list(_found(must_be(paths, Iterable, "attachments are a list of paths", but=(str, bytes))))
        _check(found)
    except OSError as error:
        raise _unreadable(error) from error
    return found


def _found(paths: Iterable[Path | str]) -> Iterator[Found]:
    for given in paths:
        must_be(given, (str, os.PathLike), "a file or folder to attach is a path")
        try:
            path = Path(given).expanduser()
        except RuntimeError:  # `~` and a user who does not exist
            path = Path(given)
        if not path.exists():
            raise NotFound("file or folder", str(given))
        if not (path.is_file() or path.is_dir()):
            raise ContractError(f"{given} is neither a file nor a folder and cannot be attached")
        inside = [Found(_readable(path.name), path)] if path.is_file() else list(_walk(path.resolve()))
        if not inside:
            raise ContractError(f"the folder {given} holds no files to attach; version control, caches and virtual environments are left out")
        yield from inside


def _unreadable(error: OSError) -> ContractError:
    return ContractError(f"{error.filename} cannot be attached: {error.strerror}; it must be a file that can be read until the task is handed in")


async def upload(found: Iterable[Found], artifacts: ArtifactStore) -> tuple[Attachment, ...]:
    """Store the files and return how a task names them; what is stored already is not stored twice.

    Raises:
        ContractError: a file cannot be read, such as one that is gone by now.
        LimitExceeded: a file has grown too large meanwhile.
    """
    gate = asyncio.Semaphore(_UPLOADS_AT_ONCE)

    async def store(file: Found) -> Attachment:
        async with gate:
            data = await asyncio.to_thread(_read, file)
            ref = await artifacts.put(file.name, data)
        return Attachment(name=file.name, hash=ref.hash, size=ref.size, media_type=ref.media_type)

    return tuple(await asyncio.gather(*map(store, found)))


def _read(file: Found) -> bytes:
    try:
        with file.path.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(error) from error
    if len(data) > FILE_BYTES_MAX:  # it was smaller, or said so, as files of /proc do
        raise LimitExceeded(f"bytes of attachment {file.name}", used=len(data), limit_max=FILE_BYTES_MAX)
    return data


def _walk(folder: Path) -> Iterator[Found]:
    for at, folders, files in os.walk(folder, onerror=_raise):
        here = Path(at)
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not _is_environment(here / name) and not (here / name).is_symlink())
        for name in sorted(files):
            path = here / name
            if path.is_file() and not path.is_symlink():
                yield Found(_readable((Path(folder.name) / path.relative_to(folder)).as_posix()), path)


def _is_environment(folder: Path) -> bool:
    try:
        return (folder / "pyvenv.cfg").exists()
    except OSError:  # a folder that cannot be read: its own name tells more
        return False


def _raise(error: OSError) -> None:
    raise error  # what cannot be read is said, not left out


def _readable(name: str) -> str:
    """Return a file's name as text that can be sent: bytes that are no UTF-8 become U+FFFD, whatever the locale took them for."""
    return os.fsencode(name).decode(errors="replace")


def _check(found: list[Found]) -> None:
    names = [file.name for file in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ContractError(f"two attachments would be called {twice[0]!r}; attach their folders instead, or rename one")
    for file in found:
        try:
            relative_path(file.name)
        except ValueError as error:
            raise ContractError(f"the file {str(file.path)!r} cannot be attached: its name {error}; rename it") from None
    if len(found) > FILES_MAX:
        raise LimitExceeded("attached files", used=len(found), limit_max=FILES_MAX)
    sizes = [file.path.stat().st_size for file in found]
    for file, size in zip(found, sizes, strict=True):
        if size > FILE_BYTES_MAX:
            raise LimitExceeded(f"bytes of attachment {file.name}", used=size, limit_max=FILE_BYTES_MAX)
    if sum(sizes) > TOTAL_BYTES_MAX:
        raise LimitExceeded("bytes of all attachments", used=sum(sizes), limit_max=TOTAL_BYTES_MAX)
