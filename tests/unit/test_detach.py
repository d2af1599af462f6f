"""`up --detach` waits for a crew to be ready, and longer while its Postgres recovers."""

from __future__ import annotations

import asyncio

import pytest

from crewlog.orchestrator import cli_crew


async def test_it_waits_as_long_as_a_recovery_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_crew, "DETACH_WITHIN_S", 0.01)
    reader, said = asyncio.StreamReader(), iter(range(1, 4))

    def recovered() -> int:
        if (steps := next(said)) == 3:
            reader.feed_data(b"1")
        return steps

    assert await cli_crew._until_ready(reader, recovered) == b"1"
    with pytest.raises(TimeoutError):
        await cli_crew._until_ready(reader, lambda: 0)
    with pytest.raises(TimeoutError):
        await cli_crew._until_ready(reader, lambda: 7)
