"""Several projections folded side by side: each fact goes to the one that takes it, and one that makes no sense stops nobody.

Following the log live and folding all of it again are the same fold, and this is it. They differ in how facts come and how rows are written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from crewlog.projections.projection import Begins, Changes, Checkpoint, Fact, Problem, Projection, problem

log = logging.getLogger(__name__)


class Folding:
    """Projections and how far each has come."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.projections: Final = projections
        self._positions = dict.fromkeys((p.name for p in projections), 0)
        self._skipped: dict[str, set[int]] = {p.name: set() for p in projections}
        self._takers = {type_: p for p in projections for type_ in p.types}

    @property
    def position(self) -> int:
        """Position up to which every projection has folded the log."""
        return min(self._positions.values())

    def resume(self, checkpoints: Mapping[str, Checkpoint], skipped: Iterable[tuple[str, int]]) -> None:
        """Go on from checkpoints. What was folded and not written is forgotten.

        Args:
            skipped: facts that could not be taken in: projection and position.
        """
        self.forget()
        for projection in self.projections:
            self._positions[projection.name] = checkpoints[projection.name].position
            self._skipped[projection.name].clear()
        for name, position in skipped:
            self._skipped[name].add(position)

    def taker(self, fact: Fact) -> Projection | None:
        """Return the projection that takes facts like this one, if any."""
        return self._takers.get(type(fact.event))

    async def load(self, begins: Callable[[int], Begins]) -> None:
        """Read what folding a page needs and is not remembered.

        Args:
            begins: the runs that the page is about behind a position.
        """
        known: dict[int, Begins] = {}
        for projection in self.projections:
            after = self._positions[projection.name]
            if after not in known:
                known[after] = begins(after)
            await projection.load(known[after], after=after, skipped=self._skipped[projection.name])

    def fold(self, facts: Iterable[Fact]) -> list[Problem]:
        """Fold facts, each with its projection, unless that is past it. Returns those that make no sense; they are skipped."""
        problems = []
        takers = {type_: (p.fold, self._positions[p.name], self._skipped[p.name], p.name) for type_, p in self._takers.items()}
        for fact in facts:
            taker = takers.get(type(fact.event))
            if taker is None:
                continue
            fold, after, skipped, name = taker
            if fact.position <= after or (skipped and fact.position in skipped):
                continue
            try:
                fold(fact)
            except Exception as error:  # a fold is code of ours: its bug must not stop the others, and must be seen
                log.exception("projection %s skips position %s", name, fact.position)
                problems.append(problem(name, fact, error))
        return problems

    def take(self) -> list[Changes]:
        """Return what has changed since the last call."""
        return [projection.take() for projection in self.projections]

    def behind(self, to: int) -> list[Checkpoint]:
        """Return the checkpoints of projections that have not come as far as a position, as they are now."""
        return [Checkpoint(p.name, p.version, self._positions[p.name]) for p in self.projections if self._positions[p.name] < to]

    def reach(self, to: int, problems: Iterable[Problem]) -> None:
        """Note that everything up to a position is folded, apart from some problems."""
        for checkpoint in self.behind(to):
            self._positions[checkpoint.name] = to
        for skipped in problems:
            self._skipped[skipped.projection].add(skipped.position)

    def forget(self) -> None:
        """Drop everything remembered: the last changes may not have been written."""
        for projection in self.projections:
            projection.forget()
