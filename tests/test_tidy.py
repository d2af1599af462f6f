"""Style as a test: where code may live, how long it may be, what it may not contain."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "events", "projections", "agents", "orchestrator")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
CLASS_LINES_MAX = 300
CLOCK_MODULES = {"events/clock.py"}
BANNED_NAMES = {"utils", "helpers", "common", "base", "manager", "misc"}
TYPE_IGNORES_MAX = 8
"""A ratchet over all packages: it may only go down."""


def sources() -> list[Path]:
    return sorted(p for package in PACKAGES for p in (ROOT / package).glob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def size(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_source_file(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    name = str(path.relative_to(ROOT))
    faults = []
    if text.count("\n") > FILE_LINES_MAX:
        faults.append(f"{text.count(chr(10))} lines")
    if not BANNED_NAMES.isdisjoint(re.split(r"[_.]", path.name)):
        faults.append("says nothing about what it holds")
    if text.strip() and ast.get_docstring(tree) is None:
        faults.append("has no docstring")
    faults += [f"function {f.name} has {size(f)} lines" for f in functions(tree) if size(f) > FUNCTION_LINES_MAX]
    faults += [f"class {c.name} has {size(c)} lines" for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and size(c) > CLASS_LINES_MAX]
    faults += [f"line {n}: unfinished" for n, line in enumerate(text.splitlines(), 1) if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)]
    if name not in CLOCK_MODULES:
        faults += [f"line {n}: asks the machine for the time or an id" for n in asks_the_machine(tree)]
    assert not faults, f"{name}: {'; '.join(faults)}"


def asks_the_machine(tree: ast.AST) -> Iterator[int]:
    """Yield lines that read a clock or draw ids; monotonic time for timeouts is the event loop's business and allowed."""
    banned = {("datetime", "now"), ("datetime", "utcnow"), ("date", "today"), ("time", "time"), ("time", "time_ns"), ("uuid", "uuid4"), ("uuid", "uuid1")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if (node.func.value.id, node.func.attr) in banned:
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("uuid4", "uuid1"):
            yield node.lineno


def test_packages_are_flat() -> None:
    nested = [str(p.relative_to(ROOT)) for package in PACKAGES for p in (ROOT / package).glob("*/**/__init__.py")]
    assert not nested, f"sub-packages are missing from the wheel: {nested}"


def test_package_roots_only_reexport() -> None:
    for package in PACKAGES:
        tree = ast.parse((ROOT / package / "__init__.py").read_text())
        logic = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and n.name != "__getattr__"]
        assert not logic, f"{package}/__init__.py holds logic: {[n.name for n in logic]}"


def test_the_front_door_stays_open() -> None:
    assert not (ROOT / "crewlog").exists(), "crewlog is a namespace package: a folder of that name closes it"


def test_every_module_has_its_place_in_the_picture() -> None:
    """A stranger finds each file in ARCHITECTURE.md, and nothing there that is gone."""
    picture = (ROOT / "ARCHITECTURE.md").read_text().partition("## The modules")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_*]+)`", picture)) - set(PACKAGES)
    modules = {path.stem for path in sources() if not path.stem.startswith("__")}
    assert not {module for module in modules if not any(fnmatch(module, name) for name in named)}
    assert not {name for name in named if not any(fnmatch(module, name) for module in modules)}


def test_type_ignores_do_not_grow() -> None:
    found = [f"{p.relative_to(ROOT)}:{n}" for p in sources() for n, line in enumerate(p.read_text().splitlines(), 1) if "type: ignore" in line]
    assert len(found) <= TYPE_IGNORES_MAX, found


def test_nothing_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/(home|root|work)/[a-z]|https?://[^ ]+\.(whl|tar\.gz|tgz)|index-url", re.ASCII)
    text_suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".sql", ".txt", ".json", ".cfg", ""}
    found = []
    for name in tracked:
        path = ROOT / name
        if path.suffix in text_suffixes and path.is_file() and name != "tests/test_tidy.py":
            found += [f"{name}:{n}" for n, line in enumerate(path.read_text(errors="replace").splitlines(), 1) if pattern.search(line)]
    assert not found, found
    assert "uv.lock" not in tracked
