"""In which order a free slot looks into its lanes: the most urgent first nearly always, so that the others never wait for ever. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

_FIRST: Final = (0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 2, 0)
"""Which of three lanes is looked into first: 8 : 3 : 1, spread out."""
_FIRST_OF_MORE: Final = (*_FIRST, 3)
"""The same with one more, that of work which needs the worker's version: 8 : 3 : 1 : 1."""

_Lane = TypeVar("_Lane")


def in_turn(lanes: Sequence[_Lane], turn: int) -> Sequence[_Lane]:
    """Return the lanes in the order of the `turn`-th look.

    Args:
        lanes: the most urgent first; any number.
    """
    order = _FIRST if len(lanes) <= 3 else _FIRST_OF_MORE
    first = min(order[turn % len(order)], len(lanes) - 1)
    return lanes if first == 0 else (lanes[first], *lanes[:first], *lanes[first + 1 :])
