"""Folds of the log into views, the knowledge index, and the process that keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewlog.projections.queries import Queries

__all__ = ["Queries"]


def __getattr__(name: str) -> Any:
    # imported when it is used: whoever only looks for the SQL files beside it needs no client of the database
    if name == "Queries":
        from crewlog.projections.queries import Queries

        return Queries
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
