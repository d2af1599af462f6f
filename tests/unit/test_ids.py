"""Ids that are derived are those that the standard derives: they stand in logs, and other programs may make them too."""

from __future__ import annotations

from uuid import UUID, uuid5

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
