from __future__ import annotations

from pathlib import Path
from uuid import UUID

from crewlog.events.store import Recorded
from crewlog.orchestrator.event_text import TEXT_CHARS_MAX, describe, event_json
from crewlog.schemas.codec import EVENT_TYPES, Unknown, decode
from crewlog.schemas.ids import Stream

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


def test_reasoning_can_be_left_out_of_an_event() -> None:
    data = b'{"call_id":"m1-1","thinking":{"size":6,"inline":"secret"},"native":{"size":6,"inline":"secret"},"text":{"size":2,"inline":"hi"}}'
    recorded = Recorded(1, Stream("task/x"), 1, UUID(int=1), "ModelCallFinished", 1, data, 0)
    assert "secret" in str(event_json(recorded))
    assert event_json(recorded, with_reasoning=False)["data"] == {"call_id": "m1-1", "text": {"size": 2, "inline": "hi"}}
