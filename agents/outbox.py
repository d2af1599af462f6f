"""Publish files into a folder that others see, such as what a web server serves, and withdraw them again.

Each publication has a folder of its own, named by the idempotency key of its call: so two calls never meet, a second try finds what the first
one left, and to withdraw one is to touch nothing else. A file is there with all of its bytes or not at all.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.files import TaskFiles
from crewlog.agents.spec import Probed, ToolContext, ToolFailed, ToolOutput, ToolSpec, Undo
from crewlog.schemas.checks import SafeText

WITHDRAW: Final = "withdraw_file"
FILE_BYTES_MAX: Final = 50 * 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,119}")
_KEY: Final = re.compile(r"[0-9a-f]{32}")
_UNFINISHED: Final = ".unfinished"
"""No published name begins with a dot."""


class PublishFile(BaseModel):
    """A file that others are to see."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[SafeText, Field(min_length=1, description="Name of the file: an attachment of the task, or an artifact of this or an earlier task.")]


class WithdrawFile(BaseModel):
    """A publication that is to be gone."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    name: SafeText


class Outbox:
    """The tools over one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def tools(self) -> tuple[ToolSpec, ...]:
        """Return the tool that publishes, and the one that takes that back."""
        return (
            ToolSpec(
                "publish_file",
                "Publish a file, so that people outside the crew can see it. It can be withdrawn later. A person may have to approve it first.",
                PublishFile,
                self.publish,
                effect="compensable",
                trust="trusted",
                needs_approval=True,
                probe=self.probe,
                undo=_undo,
            ),
            ToolSpec(WITHDRAW, "Withdraw a file that was published.", WithdrawFile, self.withdraw, effect="idempotent", trust="trusted", undoes=True),
        )

    async def publish(self, context: ToolContext, args: PublishFile) -> ToolOutput:
        """Write the file where others see it."""
        name = _published_name(args.name)
        files = TaskFiles(context)
        ref = files.find(args.name)
        if ref.size > FILE_BYTES_MAX:
            raise ToolFailed(f"nothing was published: {args.name} has {ref.size} bytes, at most {FILE_BYTES_MAX} are")
        folder = self._folder(context.task.tenant, context.idempotency_key)
        await asyncio.to_thread(_write, folder, name, await files.read(args.name))
        return ToolOutput(_told(self._place(folder, name)))

    async def probe(self, context: ToolContext, args: PublishFile) -> Probed:
        """Look whether the file is there: it never is without all of its bytes."""
        folder, name = self._folder(context.task.tenant, context.idempotency_key), _published_name(args.name)
        is_there = await asyncio.to_thread((folder / name).is_file)
        return Probed("happened", _told(self._place(folder, name))) if is_there else Probed("did_not_happen")

    async def withdraw(self, context: ToolContext, args: WithdrawFile) -> ToolOutput:
        """Remove a publication; one that is not there is as good as removed."""
        folder = self._folder(context.task.tenant, args.key)
        await asyncio.to_thread(_remove, folder, _published_name(args.name))
        return ToolOutput(f"{self._place(folder, args.name)} is not published any more.")

    def _folder(self, tenant: str, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ToolFailed(f"{key!r} is not the key of a publication")
        return self._root / tenant / key

    def _place(self, folder: Path, name: str) -> str:
        return (folder / name).relative_to(self._root).as_posix()


def _told(place: str) -> str:
    return f"Published as {place}."


def _undo(args: PublishFile, key: str) -> Undo:
    name = PurePosixPath(args.name).name
    return Undo(WITHDRAW, {"key": key, "name": name}, resource=f"{key}/{name}")


def _published_name(name: str) -> str:
    last = PurePosixPath(name).name
    if not _NAME.fullmatch(last):
        raise ToolFailed(f"nothing was published: {last!r} is no name to publish under; use letters, digits, blanks, '.', '_' and '-', no dot first")
    return last


def _write(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / _UNFINISHED
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / name)


def _remove(folder: Path, name: str) -> None:
    for path in (folder / _UNFINISHED, folder / name):
        path.unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()
