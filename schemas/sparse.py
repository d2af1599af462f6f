"""Values of the contract as they are recorded: its version fixes the defaults, so fields that hold theirs are left out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import msgspec


def sparse_json(value: Any, *, without: Collection[str] = ()) -> bytes:
    """Encode a dataclass of the contract.

    Args:
        without: fields that are left out in any case.
    """
    return msgspec.json.encode({name: field for name, field in _sparse(value).items() if name not in without})


def _sparse(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_sparse(item) for item in value]
    cls: Any = type(value)
    defaults = _defaults(cls)
    if defaults is None:
        return value
    return {name: _sparse(field) for name, default in defaults if (field := getattr(value, name)) != default}


@cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...] | None:
    """Return the fields of a dataclass with their defaults; None for any other class."""
    return tuple((field.name, field.default) for field in fields(cls)) if is_dataclass(cls) else None
