"""All projections of crewlog, in the order they are applied."""

from __future__ import annotations

from crewlog.events.store import EventStore
from crewlog.projections.agents_view import AgentProjection
from crewlog.projections.controls_view import ControlProjection
from crewlog.projections.knowledge import KnowledgeProjection
from crewlog.projections.memories import MemoryProjection
from crewlog.projections.projection import Projection
from crewlog.projections.run_projection import RunProjection
from crewlog.projections.unreadable import UnreadableProjection


def all_projections(store: EventStore) -> tuple[Projection, ...]:
    """Make one of each.

    Args:
        store: where they read what a fact refers to: the past of a run, the text of a document.
    """
    return RunProjection(store), AgentProjection(), ControlProjection(), KnowledgeProjection(store), MemoryProjection(), UnreadableProjection()
