"""The files a code task works on: what it was given, with its own writes on top.

Nothing on this machine belongs to it. Every write is an artifact named `workspace/<path>`, so any machine rebuilds the same files from
the task and its earlier artifacts, and a crash loses nothing. What runs gets a fresh copy (`checkout`) and cannot change the files:
no link it leaves behind is ever followed, and no git configuration it writes is ever read. Differences are made here, in git's format.
"""

from __future__ import annotations

import asyncio
import difflib
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.schemas.checks import RelativePath
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

PREFIX: Final = "workspace/"
FILES_MAX: Final = 2_000
FILE_BYTES_MAX: Final = 1024 * 1024
"""Of a file that a tool writes or shows."""
TOTAL_BYTES_MAX: Final = 64 * 1024 * 1024
_PATH: Final = TypeAdapter[str](RelativePath)
_ROOT_MARKS: Final = frozenset({"pyproject.toml", "pytest.ini", "setup.cfg", "tox.ini", "setup.py", "conftest.py", "tests", "test", "src"})


def safe_path(path: str) -> str:
    """Return a path inside the workspace as it is stored.

    Raises:
        ToolFailed: it could lead outside.
    """
    try:
        return _PATH.validate_python(path.strip().removeprefix("./").rstrip("/"))
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ToolFailed(f"path {shorten(clean(path), 200)!r} is refused: {reason}") from None


class Workspace:
    """The files of one code task, as its tool calls have made them so far."""

    def __init__(self, context: ToolContext) -> None:
        self._artifacts = context.artifacts
        self.given: dict[str, ArtifactRef] = {}
        """What the step started from; a write of an earlier task goes before the attachment it changed."""
        given = [ArtifactRef(a.name, Hash(a.hash), a.size, a.media_type) for a in context.task.attachments]
        before = [(item.key == context.task.key, ref) for item in context.task.context for ref in item.outcome.artifacts]
        earlier = [ref for is_own, ref in before if not is_own]
        tried = [ref for is_own, ref in before if is_own]  # work that was sent back: it goes on, and the patch is of all of it
        for ref in earlier:
            if not ref.name.startswith(PREFIX):
                self.given[ref.name] = ref
        for ref in (*given, *earlier):
            self.given[ref.name.removeprefix(PREFIX)] = ref
        self.files = dict(self.given)
        """Path -> file, now."""
        for ref in (*tried, *context.earlier_artifacts):
            if ref.name.startswith(PREFIX):
                self.files[ref.name.removeprefix(PREFIX)] = ref

    def paths(self) -> list[str]:
        """Return all paths in order."""
        return sorted(self.files)

    def changed(self) -> list[str]:
        """Return the paths that are new or differ from what the step was given."""
        return [path for path in self.paths() if path not in self.given or self.given[path].hash != self.files[path].hash]

    def tree_hash(self) -> Hash:
        """Return one hash for all paths and contents: a test report names the files it is about by it."""
        return content_hash("".join(f"{path}\0{self.files[path].hash}\n" for path in self.paths()).encode())

    def root(self) -> str:
        """Return the folder of the project: the shallowest that has a sign of one."""
        folders = {"/".join(parts[: parts.index(mark)]) for path in self.files for mark in _ROOT_MARKS if mark in (parts := path.split("/"))}
        return min(folders, key=lambda folder: (folder.count("/") + bool(folder), folder), default="")

    async def read(self, path: str) -> str:
        """Return a text file.

        Raises:
            ToolFailed: no such file, not text, or too large.
        """
        path = safe_path(path)
        ref = self.files.get(path)
        if ref is None:
            near = difflib.get_close_matches(path, self.files, n=3, cutoff=0.4)
            raise ToolFailed(f"there is no file {path!r}" + (f"; did you mean {', '.join(near)}?" if near else "; list_files shows what there is"))
        if ref.size > FILE_BYTES_MAX:
            raise ToolFailed(f"{path} has {ref.size} bytes; files up to {FILE_BYTES_MAX} bytes are shown and edited")
        try:
            return (await self._artifacts.get(ref.hash)).decode()
        except UnicodeDecodeError:
            raise ToolFailed(f"{path} is not UTF-8 text") from None

    async def write(self, path: str, text: str) -> ArtifactRef:
        """Store a file; writing the same again is the same. The answer must be among the artifacts of the tool's output.

        Raises:
            ToolFailed: the path leads outside, or a size limit is reached.
        """
        path, data = safe_path(path), clean(text).encode()
        if len(data) > FILE_BYTES_MAX:
            raise ToolFailed(f"{path} would have {len(data)} bytes; at most {FILE_BYTES_MAX} can be written")
        if path not in self.files and len(self.files) >= FILES_MAX:
            raise ToolFailed(f"the workspace has {len(self.files)} files; no more can be added")
        clash = next((other for other in self.files if other.startswith(f"{path}/") or path.startswith(f"{other}/")), None)
        if clash is not None:
            raise ToolFailed(f"{path} cannot be written: {clash} exists, and a path is a file or a folder, not both")
        ref = await self._artifacts.put(PREFIX + path, data, "text/plain")
        self.files[path] = ref
        return ref

    async def checkout(self, folder: Path) -> None:
        """Write all files into an empty folder.

        Raises:
            ToolFailed: a name that came with the task leads outside, or there is too much.
        """
        total = sum(ref.size for ref in self.files.values())
        if total > TOTAL_BYTES_MAX or len(self.files) > FILES_MAX:
            raise ToolFailed(f"the workspace has {len(self.files)} files and {total} bytes; at most {FILES_MAX} and {TOTAL_BYTES_MAX} can be run")
        contents = {safe_path(path): await self._artifacts.get(ref.hash) for path, ref in self.files.items()}
        await asyncio.to_thread(_write_all, folder, contents)

    async def diff(self) -> str:
        """Return what this step changed, as a patch that `git apply` takes; empty when nothing."""
        parts = []
        for path in self.changed():
            old = await self._artifacts.get(self.given[path].hash) if path in self.given else None
            new = await self._artifacts.get(self.files[path].hash)
            parts.append(await asyncio.to_thread(file_diff, path, old, new))  # that of a large file takes a while, in which the worker must answer others
        return "".join(parts)


def file_diff(path: str, old: bytes | None, new: bytes) -> str:
    """Return the patch of one file; `old` is None for a new one."""
    head = f"diff --git a/{path} b/{path}\n" + ("new file mode 100644\n" if old is None else "")
    try:
        before, after = _lines((old or b"").decode()), _lines(new.decode())
    except UnicodeDecodeError:
        return f"{head}Binary files a/{path} and b/{path} differ\n"
    lines = difflib.unified_diff(before, after, "/dev/null" if old is None else f"a/{path}", f"b/{path}")
    return head + "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def diff_lines(patch: str) -> int:
    """Count the added and removed lines of a patch."""
    return sum(line[:1] in ("+", "-") and line[:4] not in ("+++ ", "--- ") for line in patch.splitlines())


def _write_all(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir()
    for path, data in contents.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _lines(text: str) -> list[str]:
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1].removesuffix("\n")
    return lines if lines[-1] else lines[:-1]
