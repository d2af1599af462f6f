"""Work that comes out the same again: sent back by the critic, or planned anew, and no different for it. Pure.

A second identical outcome of the same objective shows that another round would only cost money. Work counts as the same when kind,
objective and result are: summary, output, artifacts and citations of an outcome, code and text of a failure. Failures that may pass by
themselves (a provider that is down) are never counted.
"""

from __future__ import annotations

import msgspec

from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import Step
from crewlog.schemas.values import Failure, Outcome

NO_PROGRESS = "no_progress"
"""Flag of work that came out the same although it was sent back or planned anew."""


def work_hash(step: Step, result: Outcome | Failure) -> Hash | None:
    """Name what came of a step, so that two results can be compared whatever task, revision or plan they are from; None: not comparable."""
    if isinstance(result, Failure):
        return None if result.retryable else _hash(step, [result.code, result.message])
    return _hash(step, [result.summary, result.output, [(a.name, a.hash) for a in result.artifacts], result.citations])


def _hash(step: Step, result: list[object]) -> Hash:
    return content_hash(msgspec.json.encode([step.type, step.objective, *result], order="deterministic"))
