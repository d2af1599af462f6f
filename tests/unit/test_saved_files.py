"""Files of a run in a folder of a person: where their names may lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from crewlog.orchestrator.saved_files import save_files
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import content_hash
from crewlog.schemas.values import ArtifactRef

FILE = content_hash(b"made")


async def made(hash_: str) -> bytes:
    assert hash_ == FILE
    return b"made"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_files_lie_below_the_folder_under_their_names(tmp_path: Path) -> None:
    names = ("report.md", "workspace/.github/ci.yml", "workspace/.gitignore", "a.git/b")
    written = await save_files([ArtifactRef(name, FILE, 4) for name in names], tmp_path / "new", made)
    assert written == [tmp_path / "new" / name for name in names]
    assert {path.read_bytes() for path in written} == {b"made"}


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "link/x", ".git/config", "workspace/.git/hooks/post-checkout", ".GIT/config", "a/.git. /config"]
)
async def test_no_name_leads_out_of_it_or_to_what_runs_commands(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ContractError, match="nothing more was written"):
        await save_files([ArtifactRef(name, FILE, 4), ArtifactRef("other.md", FILE, 4)], folder, made)
    assert (names_in(folder), names_in(tmp_path)) == (["link"], ["folder"])
