"""Server-sent events come out the same however the network cuts them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from crewlog.agents.model_stream import event_data

DATA = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1, max_size=20).filter(lambda text: not text.startswith(" "))
LINES = st.lists(DATA, min_size=1, max_size=3)


@given(
    st.lists(LINES, min_size=1, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["data: ", "data:"]),
    st.booleans(),
    st.lists(st.integers(1, 9), min_size=1),
)
async def test_events_do_not_depend_on_chunks(events: list[list[str]], newline: str, field: str, is_ended: bool, sizes: list[int]) -> None:
    framed = [f"event: x{newline}: a comment{newline}" + "".join(f"{field}{line}{newline}" for line in lines) for lines in events]
    sent = (newline.join(framed) + (newline if is_ended else "")).encode()

    async def chunks() -> AsyncIterator[bytes]:
        at = turn = 0
        while at < len(sent):
            size = sizes[turn % len(sizes)]
            yield sent[at : at + size]
            at, turn = at + size, turn + 1

    assert [data async for data in event_data(chunks(), "a model")] == ["\n".join(lines).encode() for lines in events]
