from __future__ import annotations

from pathlib import Path

from crewlog.orchestrator.event_text import TEXT_CHARS_MAX, describe
from crewlog.schemas.codec import EVENT_TYPES, Unknown, decode

GOLDEN = Path(__file__).parents[1] / "golden" / "events.jsonl"


def test_every_event_type_has_a_line() -> None:
    seen = set()
    for line in GOLDEN.read_text().splitlines():
        type_, version, data = line.split("\t")
        event = decode(type_, int(version), data.encode())
        text = describe(event)
        assert len(text) <= TEXT_CHARS_MAX
        assert "\n" not in text
        seen.add(type(event).__name__)
    assert seen >= set(EVENT_TYPES)


def test_an_unknown_type_is_shown_as_such() -> None:
    assert "does not know" in describe(Unknown("Later", 9, b"{}"))
