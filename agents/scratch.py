"""The folder of one child: made for it, and gone with it.

Whoever has made one holds a lock on it, which ends with its process however that ends. So what a process left behind that was killed is known by
its lock, and removed by the next worker that starts; a folder that is in use never is, whichever process of this machine uses it. Where the file
system has no such locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "child-"

log = logging.getLogger(__name__)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a folder for one child below `parent`, with a `tmp` inside, and remove both afterwards, and `parent` if it was not there before."""
    was_there = parent.exists()
    folder, lock = _folder_below(parent)
    try:
        (folder / "tmp").mkdir()
        yield folder
    finally:
        try:
            _remove(folder)
        finally:
            os.close(lock)
        if not was_there:
            with suppress(OSError):  # it holds something else by now
                parent.rmdir()


def remove_left(workspaces: Path) -> int:
    """Remove what processes that are gone left in the folders of tasks, and those that are empty; returns how many folders of children that were.

    Args:
        workspaces: the folder with one folder for each task.
    """
    removed = 0
    for task in _entries(workspaces):
        for folder in [child for child in _entries(task) if child.name.startswith(_PREFIX)]:
            try:
                removed += _remove_if_left(folder)
            except OSError as error:
                log.warning("%s was left by a process that is gone and cannot be removed: %s", folder, error)
        with suppress(OSError):  # it holds something else, or is no folder
            task.rmdir()
    if removed:
        log.info("removed %s that processes which are gone had left in %s", "one folder" if removed == 1 else f"{removed} folders", workspaces)
    return removed


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # it has gone, or never was one
        return []


def _remove_if_left(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:  # whoever has used it removed it this moment
        return False
    try:
        if _lock(lock) is not True or not _is_still(folder, lock):
            return False
        _remove(folder)
        return True
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, whatever a child has left in it: folders that it locked, or that lie deeper than a path can name and a program can follow.

    What lies in a folder of this one is moved up before that one goes: so no path gets long.
    """
    folder.chmod(0o700)
    name = f"moved-{secrets.token_hex(8)}"  # which no child can have taken
    moved = 0
    while inner := _folders(folder):
        for place in inner:
            place.chmod(0o700)
            for deeper in _folders(place):
                deeper.chmod(0o700)
                deeper.rename(folder / f"{name}-{moved}")
                moved += 1
            shutil.rmtree(place)
    shutil.rmtree(folder)


def _folders(place: Path) -> list[Path]:
    with os.scandir(place) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _folder_below(parent: Path) -> tuple[Path, int]:
    """Make a folder and hold its lock: the open file that is returned."""
    while True:
        with suppress(FileExistsError):  # `exist_ok` would look again whether it is there, and another child may have removed it in between
            parent.mkdir(parents=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)).resolve()
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another child was the last one in it, or a worker that starts took it for left, and has removed it this moment
            continue
        if _lock(lock) is not False and _is_still(folder, lock):
            return folder, lock
        os.close(lock)


def _lock(file: int) -> bool | None:
    """Say whether this process holds the lock of an open folder from now on; None where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_still(folder: Path, file: int) -> bool:
    """Say whether a folder is there under its name, not removed since it was opened."""
    try:
        return os.path.samestat(folder.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False
