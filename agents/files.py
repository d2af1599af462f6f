"""The files a task can name: its attachments, the artifacts of the tasks before it, and what its own tool calls have made.

A name means the first of these that has it. A file that is hidden by another of the same name is still reachable: an artifact of an
earlier task as `<step key>/<name>`, one of this task as `own/<name>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.schemas.errors import NotFound, TerminalError
from crewlog.schemas.ids import Hash
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
_NAMES_SHOWN_MAX: Final = 40


class TaskFiles:
    """Resolves names to files for the tools of one task."""

    def __init__(self, context: ToolContext) -> None:
        self._artifacts = context.artifacts
        self._files: dict[str, ArtifactRef] = {}
        for ref, qualified in _in_order(context):
            if self._files.setdefault(ref.name, ref).hash != ref.hash and qualified:
                self._files.setdefault(qualified, ref)

    def names(self) -> list[str]:
        """Return every name that `find` knows: attachments first, then artifacts of earlier tasks, then this task's own."""
        return list(self._files)

    def find(self, name: str) -> ArtifactRef:
        """Return the file of that name.

        Raises:
            ToolFailed: there is none; the text lists those there are.
        """
        ref = self._files.get(name) or self._files.get(name.strip().removeprefix("./"))
        if ref is None:
            raise ToolFailed(f"there is no file {shorten(clean(name), 200)!r} in this task; {self._listing()}")
        return ref

    async def read(self, name: str, *, bytes_max: int = FILE_BYTES_MAX) -> bytes:
        """Fetch a file's bytes; the store has checked them against their hash.

        Raises:
            ToolFailed: no such file, too large, or its bytes are gone or damaged.
        """
        ref = self.find(name)
        if ref.size > bytes_max:
            raise ToolFailed(f"file {ref.name!r} has {ref.size} bytes; this tool reads at most {bytes_max}")
        try:
            data = await self._artifacts.get(ref.hash)
        except (NotFound, TerminalError) as error:
            raise ToolFailed(f"file {ref.name!r} cannot be fetched: {error}; whoever submitted the task must store it again") from error
        if len(data) != ref.size:
            raise ToolFailed(f"file {ref.name!r} is declared with {ref.size} bytes, but {len(data)} are stored under {ref.hash[:12]}…")
        return data

    async def read_text(self, name: str, *, bytes_max: int = FILE_BYTES_MAX) -> str:
        """Fetch a text file: UTF-8, a leading byte order mark removed, NUL replaced, line ends as LF.

        Raises:
            ToolFailed: as `read`, or the bytes are not UTF-8.
        """
        data = await self.read(name, bytes_max=bytes_max)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ToolFailed(f"file {name!r} is not UTF-8 text (byte {error.start}: {error.reason})") from error
        return clean(text.replace("\r\n", "\n").replace("\r", "\n"))

    def _listing(self) -> str:
        known = self.names()
        more = f" and {len(known) - _NAMES_SHOWN_MAX} more" if len(known) > _NAMES_SHOWN_MAX else ""
        return f"the files are: {', '.join(known[:_NAMES_SHOWN_MAX])}{more}" if known else "it has no files at all"


def _in_order(context: ToolContext) -> Iterator[tuple[ArtifactRef, str]]:
    for attached in context.task.attachments:
        yield ArtifactRef(attached.name, Hash(attached.hash), attached.size, attached.media_type), ""
    for item in context.task.context:
        for ref in item.outcome.artifacts:
            yield ref, f"{item.key}/{ref.name}"
    # a name that this task made more than once means the newest
    for ref in {ref.name: ref for ref in context.earlier_artifacts}.values():
        yield ref, f"own/{ref.name}"
