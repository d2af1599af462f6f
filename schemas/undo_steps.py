"""The steps of a rollback: one for each of its orders, named by its place. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.run_events import Step


def undo_steps(orders: Sequence[UndoOrder], kinds: Sequence[str], *, behind: int = 0) -> tuple[Step, ...]:
    """Return the steps that carry out orders, each by the agent kind at its place; `behind` orders come before them."""
    nothing = msgspec.Raw(b"{}")
    return tuple(
        Step(undo_key(behind + n), kind, f"Take back {order.effect_tool}{f' ({order.resource})' if order.resource else ''} with {order.tool}", (), nothing)
        for n, (kind, order) in enumerate(zip(kinds, orders, strict=True), 1)
    )


def undo_key(n: int) -> str:
    """Name the step that carries out the `n`th order of a rollback, counted from 1."""
    return f"undo-{n}"
