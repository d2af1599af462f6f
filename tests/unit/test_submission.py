"""What arrives as a submission and is no JSON object is refused with what is wrong with it."""

from __future__ import annotations

from uuid import UUID

import pytest

from crewlog.orchestrator.submission import read_submission
from crewlog.schemas.errors import ContractError


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"type": "data", ', "not valid JSON"),
        (rb'{"type":"data","objective":"a\ud800b"}', r"half of a surrogate pair, \\ud800, at byte 29"),
        (rb'{"type":"data","objective":"\\\ude00"}', r"half of a surrogate pair, \\ude00"),
        (b'{"type":"data","objective":"\xed\xa0\x80"}', "not valid JSON"),
        (rb'{"type":"data","objective":"a\u0000b"}', "NUL"),
        (b"[" * 20_000, "nested too deeply|not valid JSON"),
        (b"[]", "must be a JSON object, got list"),
    ],
)
def test_what_is_no_task_says_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        read_submission(data, tenant="default", type_="data", task_id=UUID(int=1))


def test_a_whole_pair_and_a_written_backslash_are_text() -> None:
    task = read_submission(rb'{"objective": "\ud83d\ude00 \\ud800"}', tenant="default", type_="data", task_id=UUID(int=1))
    assert task.objective == "\U0001f600 \\ud800"
