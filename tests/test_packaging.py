"""What a user installs is what is in the tree: every module, the SQL, the demo data; and no bare `agents` or `events`."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {name.removeprefix("crewlog."): name for name in PYPROJECT["tool"]["setuptools"]["packages"]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a clean copy of the tracked and new files, as a release would."""
    out = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": ""})
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in PACKAGES:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"crewlog/{path.relative_to(ROOT)}" in inside


def test_the_wheel_exposes_nothing_but_crewlog(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"crewlog"}
    assert "crewlog/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_it_lives_beside_a_package_that_is_called_agents(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "agents").mkdir()
    (site / "agents" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    script = "import sys; sys.path.insert(0, sys.argv[1]); import agents, crewlog.agents as ours; print(agents.OWNER, '|', ours.AgentSpec.__module__)"
    out = subprocess.run([sys.executable, "-P", "-c", script, str(site)], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.strip() == "somebody else | crewlog.agents.spec"


def test_every_dependency_is_pinned_by_a_constraint() -> None:
    pinned = {line.split("==")[0].split("[")[0].lower().replace("_", "-") for line in PYPROJECT["tool"]["uv"]["constraint-dependencies"]}
    groups = [*PYPROJECT["project"]["dependencies"], *(d for extra in PYPROJECT["project"]["optional-dependencies"].values() for d in extra)]
    wanted = {d.split(">")[0].split("=")[0].split("[")[0].lower() for d in groups} - {"crewlog"}
    assert wanted <= pinned, f"not pinned: {sorted(wanted - pinned)}"


def test_extras_of_what_we_need_are_found_by_an_old_pip() -> None:
    """Pip before 23.3 knows an extra only as its package spells it, and passes over any other with a warning: what it would bring is named by us."""
    project = PYPROJECT["project"]
    ours = [Requirement(text) for texts in (project["dependencies"], *project["optional-dependencies"].values()) for text in texts]
    named, open_, seen = {canonicalize_name(one.name) for one in ours}, [one for one in ours if one.name != "crewlog"], set[str]()
    while open_:
        needed = open_.pop()
        provided = metadata(needed.name).get_all("Provides-Extra") or []
        for requirement in map(Requirement, requires(needed.name) or []):
            plain, *with_extras = [requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *needed.extras)]
            if not plain and any(with_extras) and not needed.extras <= set(provided):
                assert canonicalize_name(requirement.name) in named, f"{needed} is not what {needed.name} calls it: ask for {requirement.name}"
            if (plain or any(with_extras)) and str(requirement) not in seen:
                seen.add(str(requirement))
                open_.append(requirement)
