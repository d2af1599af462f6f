"""Folds of the log into views, the knowledge index, and the process that keeps them."""

from __future__ import annotations

from crewlog.projections.queries import Queries

__all__ = ["Queries"]
