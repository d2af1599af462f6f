"""How seals are written down, and what is said of those that do not hold."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.events.seals import Fault, Gap, Seal, SealedEvent, SealMark, faults, holds, name_removed, parse_mark, seal_hash, split
from crewlog.schemas.errors import ContractError


def event(position: int, version: int = 1) -> SealedEvent:
    return SealedEvent(position, "run/1", version, hashlib.sha256(str((position, version)).encode()).digest())


def digests(*positions: int) -> list[bytes]:
    return [event(position).digest for position in positions]


def sealed(number: int, first: int, events: list[SealedEvent], before: bytes = b"") -> tuple[Seal, bytes]:
    bare = Seal(number, first, events[-1].position, len(events), b"")
    marks = b"".join(struct.pack(">ii8s", e.position - first, 7, e.digest[:8]) for e in events)
    return bare._replace(hash=seal_hash(before, bare, [e.digest for e in events])), marks


@given(st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_mark_is_read_as_it_was_written(number: int, digest: bytes) -> None:
    mark = SealMark(number, digest.hex())
    if len(str(number)) <= 19:
        assert parse_mark(f" {mark}\n") == mark


@pytest.mark.parametrize("text", ["", "41", "0:" + "a" * 64, "41:" + "g" * 64, "41:" + "a" * 63, "x" * 200])
def test_what_is_no_seal_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="no seal"):
        parse_mark(text)


def test_a_chain_holds_and_depends_on_everything_before() -> None:
    first, _ = sealed(1, 1, [event(1), event(3)])
    second, _ = sealed(2, 4, [event(4)], first.hash)
    assert holds(None, first, digests(1, 3))
    assert holds(first, second, digests(4))
    other, _ = sealed(1, 1, [event(1), event(3, 2)])
    assert not holds(other, second, digests(4))
    assert not holds(first, second._replace(first=5), digests(4))
    assert not holds(first, second, digests(4, 5))
    assert not holds(None, second, digests(4))


def test_a_seal_that_is_hashed_right_and_covers_something_else_does_not_hold() -> None:
    first, _ = sealed(1, 1, [event(1), event(3)])
    skipping, _ = sealed(2, 5, [event(5)], first.hash)
    assert not holds(first, skipping, digests(5)), "it leaves position 4 out"
    again, _ = sealed(2, 1, [event(1)], first.hash)
    assert not holds(first, again, digests(1)), "it covers what is covered"
    late, _ = sealed(3, 4, [event(4)], first.hash)
    assert not holds(first, late, digests(4)), "a seal is missing in front of it"
    boasting = first._replace(events=3)
    assert not holds(None, boasting._replace(hash=seal_hash(b"", boasting, digests(1, 3))), digests(1, 3)), "it says that it covers three events"


@given(st.sets(st.integers(1, 60), min_size=3), st.data())
def test_every_place_that_differs_is_named(positions: set[int], data: st.DataObject) -> None:
    events = [event(position) for position in sorted(positions)]
    seal, marks = sealed(1, 1, events)
    removed, changed = (data.draw(st.sets(st.sampled_from(sorted(positions)), max_size=3)) for _ in range(2))
    added = data.draw(st.sets(st.integers(1, seal.last), max_size=3)) - positions
    there = [event(e.position, 2 if e.position in changed else 1) for e in events if e.position not in removed] + [event(position) for position in added]
    there.sort()
    found = faults(None, seal, marks, there)
    if removed or changed or added:
        assert not holds(None, seal, [e.digest for e in there])
        assert {(fault.kind, fault.position) for fault in found} == (
            {("removed", p) for p in removed} | {("changed", p) for p in changed - removed} | {("added", p) for p in added}
        )
    else:
        assert [fault.kind for fault in found] == ["broken seal"], "nothing differs but the seal itself"


def test_a_seal_that_is_gone_is_named_and_not_what_stood_below_it() -> None:
    first, _ = sealed(1, 1, [event(1)])
    second, _ = sealed(2, 2, [event(2)], first.hash)
    third, marks = sealed(3, 3, [event(3)], second.hash)
    (lost,) = faults(first, third, marks, [event(2), event(3)])
    assert lost[:2] == ("broken seal", 2)
    assert lost.detail.startswith("seal 2 cannot be found")
    assert [fault[:2] for fault in faults(first, third, marks, [event(2), event(3, 2)])] == [("broken seal", 2), ("changed", 3)]
    (both,) = faults(None, third, marks, [event(1), event(2), event(3)])
    assert both.detail.startswith("seals 1 to 2 cannot be found")


def test_events_are_dealt_out_to_their_seals() -> None:
    seals = [Seal(1, 1, 3, 2, b""), Seal(2, 4, 9, 1, b""), Seal(3, 10, 12, 1, b"")]
    positions = [1, 3, 10, 12]
    dealt = [positions[covered] for _, covered in split(seals, positions)]
    assert dealt == [[1, 3], [], [10, 12]]


def test_removed_events_get_the_names_of_the_versions_that_are_missing() -> None:
    removed = [Fault("removed", position, "", 0, "gone", hint) for position, hint in ((5, 7), (6, 8), (8, 7))]
    gaps = [Gap("run/a", 2, 3, 9, 7), Gap("run/a", 3, 3, 9, 7), Gap("run/b", 2, 4, 9, 8), Gap("run/c", 4, 20, 30, 9)]
    assert [fault[:4] for fault in name_removed(removed, gaps)] == [
        ("removed", 5, "run/a", 2),
        ("removed", 6, "run/b", 2),
        ("removed", 8, "run/a", 3),
        ("missing version", 20, "run/c", 4),
    ]


@pytest.mark.parametrize("gap", [Gap("run/a", 2, 3, 5, 7), Gap("run/a", 2, 5, 9, 7), Gap("run/a", 2, 3, 9, 8)])
def test_a_version_that_was_missing_elsewhere_is_no_name_for_a_removed_event(gap: Gap) -> None:
    named = name_removed([Fault("removed", 5, "", 0, "gone", 7)], [gap])
    assert [fault[:4] for fault in named if fault.kind == "removed"] == [("removed", 5, "", 0)]
    assert [fault[:4] for fault in named if fault.kind != "removed"] == [("missing version", gap.after, "run/a", 2)]
