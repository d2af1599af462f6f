"""Write files that other people read: under its name there is the old one or all of the new one, never a part.

A link is followed, and what is no file, such as a pipe or `/dev/stdout`, is written to as it is: replacing it would take it away from others.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write that was allowed meets: no room, or a device that fails. The system names no file then."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name at the end of the block; when that fails, the name stays what it was.

    Raises:
        OSError: it cannot be written, such as for want of room; it has the name.
    """
    where = path.resolve()
    part = path if path.exists() and not path.is_file() else where.with_name(f".{where.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        if part != path:
            part.replace(where)
    except OSError as error:
        if error.filename == str(part) or (error.filename is None and error.errno in UNWRITABLE):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if part != path:
            part.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that a loss of power does not take away any more.

    Raises:
        OSError: as in `whole_file`.
    """
    with whole_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
