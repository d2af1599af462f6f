"""Write the files of a run into a folder of a person, under the names that agents chose and nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path, PurePosixPath

from crewlog.orchestrator.bundle import Bundle
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash
from crewlog.schemas.run_events import RunCompleted, RunFailed, RunHeld
from crewlog.schemas.values import ArtifactRef


async def save_files(files: Iterable[ArtifactRef], folder: Path, get: Callable[[str], Awaitable[bytes]]) -> list[Path]:
    """Write files and return where they are.

    Args:
        get: fetches a file by its hash.

    Raises:
        ContractError: a name that an agent chose would lie outside of the folder, or among what git obeys.
        NotFound: there is no such file any more.
    """
    written = []
    for file in files:
        path = _inside(folder, file.name)
        if path is None:
            raise ContractError(f"the file name {file.name!r} would lie outside of {folder}; nothing more was written")
        if any(part.rstrip(". ").lower() == ".git" for part in PurePosixPath(file.name).parts):  # as file systems that ignore case and the end take it
            raise ContractError(f"the file name {file.name!r} would be obeyed by git, which runs what its settings and hooks say; nothing more was written")
        data = await get(file.hash)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written.append(path)
    return written


async def save_bundled(bundle: Bundle, folder: Path) -> list[Path]:
    """Write what an exported run made, as `save_files` does.

    Raises:
        ContractError: a name would lie outside of the folder, or the run was exported without its files.
    """
    ends = [event for recorded in bundle.events if isinstance(event := recorded.event(), RunHeld | RunCompleted | RunFailed)]
    made = ends[-1].artifacts if ends else ()
    if missing := [file.name for file in made if file.hash not in bundle.files]:
        raise ContractError(f"{len(missing)} of {len(made)} files that run {bundle.run_id} made, such as {missing[0]!r}, are not in what was exported of it")

    async def get(hash_: str) -> bytes:
        return bundle.files[Hash(hash_)]

    return await save_files(made, folder, get)


def _inside(folder: Path, name: str) -> Path | None:
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) else None
