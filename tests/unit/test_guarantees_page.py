"""docs/guarantees.md keeps its word: each fault point has one row, and each test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crewlog.events import faults

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "guarantees.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:unit|contract|process|property|sim)/test_\w+\.py(?:::\w+)?)`", PAGE)))
SHORT = {
    "an_agent": "test_an_agent_is_struck",
    "an_orchestrator": "test_an_orchestrator_is_struck",
    "who_overtakes": "test_an_orchestrator_is_struck_while_a_task_overtakes",
    "asked": "test_an_orchestrator_is_struck_by_what_it_is_asked",
    "a_projector": "test_a_projector_is_struck",
    "a_letter": "test_a_worker_is_struck_while_it_keeps_a_dead_letter",
}


def rows() -> dict[str, list[str]]:
    """Return point -> cells of its row."""
    found: dict[str, list[str]] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if (point := re.fullmatch(r"`((?:before|after)_\w+)`", cells[0])) is not None:
            assert point[1] not in found, f"{point[1]} has two rows"
            found[point[1]] = cells
    return found


def test_each_fault_point_has_a_row_that_says_everything() -> None:
    assert set(rows()) == set(faults.POINTS)
    for point, cells in rows().items():
        assert len(cells) == 4, point
        assert all(cells), point


def test_each_row_is_shown_by_a_test_of_the_role_that_passes_the_point() -> None:
    for point, cells in rows().items():
        assert set(re.findall(r"`(\w+)`", cells[3])) & SHORT.keys(), f"no test is named for {point}"


@pytest.mark.parametrize("name", [*NAMED, *(f"process/test_fault_points.py::{test}" for test in SHORT.values())])
def test_a_test_that_is_named_exists(name: str) -> None:
    file, _, test = name.partition("::")
    text = (TESTS / file).read_text()
    assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), name


def test_enough_is_named() -> None:
    assert len(NAMED) > 15
