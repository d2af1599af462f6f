"""Text that can be stored everywhere."""

from __future__ import annotations

import pytest

from crewlog.schemas.text import clean, find_bad


@pytest.mark.parametrize(
    ("text", "at", "cleaned"),
    [
        ("plain", None, "plain"),
        ("", None, ""),
        ("grün 😀", None, "grün 😀"),
        ("a\0b", 1, "a\ufffdb"),
        ("grün\0", 4, "grün\ufffd"),
        ("\ud800x\udfff", 0, "\ufffdx\ufffd"),
        ("a\ud83d\ude00\ud83d", 1, "a😀\ufffd"),
    ],
)
def test_only_what_cannot_be_stored_is_found_and_replaced(text: str, at: int | None, cleaned: str) -> None:
    assert find_bad(text) == at
    assert clean(text) == cleaned
