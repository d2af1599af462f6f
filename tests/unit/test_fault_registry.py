"""The registry of fault points and the places in the sources agree, so that no test waits for a point that nobody passes."""

from __future__ import annotations

import re
from pathlib import Path

from crewlog.events import faults

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r'^( +)if faults\.hook is not None:\n\1    faults\.hook\("(\w+)"\)\n', re.MULTILINE)
ANY_USE = re.compile(r"^[^\"`]*\bfaults\.hook\(", re.MULTILINE)


def sources() -> list[str]:
    return [path.read_text() for package in ("events", "projections", "agents", "orchestrator") for path in sorted((ROOT / package).glob("*.py"))]


def test_every_point_has_its_place_and_every_place_its_point() -> None:
    assert {place[2] for text in sources() for place in PLACE.finditer(text)} == set(faults.POINTS)


def test_a_place_costs_one_look_when_nothing_is_armed() -> None:
    for text in sources():
        assert len(ANY_USE.findall(text)) == len(PLACE.findall(text)), "guard each place with `if faults.hook is not None:`"
