"""Ids that are derived are those that the standard derives: they stand in logs, and other programs may make them too."""

from __future__ import annotations

from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.schemas import ids
from crewlog.schemas.ids import RunId, derived_task_id

NAMESPACE = UUID("6f0f6d0e-6a52-5d0c-9d5f-6d1f2a1c7b11")


@given(st.uuids(), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 99))
def test_a_derived_id_is_a_version_5_uuid_of_the_namespace(run_id: UUID, key: str, revision: int) -> None:
    made = derived_task_id(RunId(run_id), key=key, revision=revision)
    assert made == uuid5(NAMESPACE, f"{run_id}/{key}/{revision}")
    assert (type(made), made.version) == (UUID, 5)


def test_the_namespace_never_changes() -> None:
    assert str(ids.idempotency_key(RunId(NAMESPACE), ids.TaskId(NAMESPACE), "t1-1")) == uuid5(NAMESPACE, f"{NAMESPACE}/{NAMESPACE}/effect/t1-1").hex


@given(st.uuids())
def test_ids_are_written_and_read_as_uuids_are(id_: UUID) -> None:
    assert ids.id_text(id_) == str(id_)
    assert ids.read_id(str(id_)) == UUID(str(id_))
    assert type(ids.read_id(str(id_))) is UUID


@pytest.mark.parametrize("text", ["", "x", "0b6a2c0e-33a7-5f0e-8d52-1d2a5b8f7c6", "0b6a2c0e-33a7-5f0e-8d52-1d2a5b8f7c61 "])
def test_what_is_no_id_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no id"):
        ids.read_id(text)
