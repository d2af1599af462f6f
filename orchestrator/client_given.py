"""What programs give the client is looked at before anything is done with it: they are told what was expected, not where inside it failed."""

from __future__ import annotations

import reprlib
from typing import TypeVar

from crewlog.schemas.errors import ContractError

T = TypeVar("T")


def must_be(given: T, kinds: type | tuple[type, ...], rule: str, *, but: tuple[type, ...] = ()) -> T:
    """Return what was given if it is of one of these types, and of none of those of `but`.

    Args:
        rule: what is expected, and what to do to have it.

    Raises:
        ContractError: it is something else.
    """
    if not isinstance(given, kinds) or isinstance(given, but):
        raise ContractError(f"{rule}; got {type(given).__name__} {reprlib.repr(given)}")
    return given
