"""Stored events keep their meaning: golden bytes for every (type, version), upcasters complete, unknown types kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crewlog.schemas.codec import EVENT_TYPES, Unknown, check_upcasters, decode, encode, type_name
from crewlog.schemas.errors import ContractError
from crewlog.schemas.run_events import RunCancelled
from crewlog.schemas.task_events import NOTICED_TYPES, TERMINAL_TYPES

GOLDEN = Path(__file__).parent.parent / "golden" / "events.jsonl"


def golden() -> list[tuple[str, int, bytes]]:
    """Read the golden lines: type, schema version and the exact JSON, separated by tabs. A type that got new fields has one more line."""
    rows = (line.split(b"\t") for line in GOLDEN.read_bytes().splitlines())
    return [(name.decode(), int(version), data) for name, version, data in rows]


def test_every_type_and_version_has_golden_bytes() -> None:
    wanted = {(name, version) for name, cls in EVENT_TYPES.items() for version in range(1, cls.schema_version + 1)}
    found = {(name, version) for name, version, _ in golden()}
    assert found == wanted, "add a line to tests/golden/events.jsonl for a new type or version; never change one that is there"


@pytest.mark.parametrize(("name", "version", "data"), golden())
def test_golden_bytes_decode_and_the_current_version_encodes_to_the_same_bytes(name: str, version: int, data: bytes) -> None:
    event = decode(name, version, data)
    assert not isinstance(event, Unknown)
    assert type_name(event) == name
    if version == EVENT_TYPES[name].schema_version:
        assert encode(event) == data


def test_unknown_types_and_later_versions_are_kept_as_they_are() -> None:
    assert decode("NeverHeardOf", 1, b"{}") == Unknown("NeverHeardOf", 1, b"{}")
    assert decode("RunCancelled", 99, b"{}") == Unknown("RunCancelled", 99, b"{}")


def test_fields_of_later_programs_are_tolerated() -> None:
    assert decode("RunCancelled", 1, b'{"reason":"r","actor":"a","severity":3}') == RunCancelled("r", "a")


def test_data_that_does_not_fit_its_type_is_an_error_that_names_it() -> None:
    with pytest.raises(ContractError, match="RunCancelled v1"):
        decode("RunCancelled", 1, b'{"reason":1}')


def test_data_that_is_nested_deeper_than_anybody_follows_is_such_an_error() -> None:
    with pytest.raises(ContractError, match="RunCancelled v1"):
        decode("RunCancelled", 1, b'{"reason":"r","actor":"a","more":%b%b}' % (b"[" * 20_000, b"]" * 20_000))


def test_upcasters_are_complete() -> None:
    check_upcasters()
    with pytest.raises(ContractError, match="surplus"):
        check_upcasters({("RunCancelled", 1): dict})


def test_type_sets_name_existing_types() -> None:
    assert set(EVENT_TYPES) >= TERMINAL_TYPES | NOTICED_TYPES


def test_golden_lines_are_json_objects() -> None:
    assert all(isinstance(json.loads(data), dict) for _, _, data in golden())
