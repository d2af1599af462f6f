"""The submitted `AgentTask` as the run machine knows it, and as a fork changes it. Pure."""

from __future__ import annotations

from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from crewlog.schemas.merge_patch import merged
from crewlog.schemas.retry import RetryPolicy
from crewlog.schemas.subjects import SHADOW_LANE, version_lane
from crewlog.schemas.trial import Trial
from crewlog.schemas.values import Trust

GOAL_CHARS_MAX: Final = 500
"""Of the objective in the event that begins a run, where lists take it from."""


class BudgetBrief(msgspec.Struct, frozen=True, omit_defaults=True):
    """`Budget` as recorded."""

    hard_micro_usd: int | None = None
    soft_micro_usd: int | None = None


class Brief(msgspec.Struct, frozen=True):
    """The submitted `AgentTask`, as far as the run machine needs it.

    Decoded from the recorded JSON without validating it a second time; defaults are those of `AgentTask` (a test compares them).
    """

    task_id: UUID
    run_id: UUID
    type: str
    objective: str
    parent_task_id: UUID | None = None
    key: str | None = None
    tenant: str = "default"
    user: str = "anonymous"
    surface: str = "default"
    context: tuple[msgspec.Raw, ...] = ()
    attachments: tuple[dict[str, Any], ...] = ()
    constraints: msgspec.Raw = msgspec.Raw(b"{}")
    limits: dict[str, int] = {}
    timeout_seconds: int = 900
    budget: BudgetBrief = BudgetBrief()
    output_schema: dict[str, Any] | None = None
    priority: Literal["high", "normal", "low", "shadow"] = "normal"
    auto_approve: bool = False
    routing: Literal["planner", "router"] = "planner"
    synthesis: Literal["planner", "collect"] | None = None
    trial: Trial | None = None

    @property
    def attempts_max(self) -> int:
        """Attempts at one task whose failures are worth retrying."""
        return self.limits.get("attempts_max", RetryPolicy().attempts_max)

    def lane_of(self, kind: str) -> str:
        """Return the lane in which agents of a kind find the run's tasks."""
        version = "" if self.trial is None or self.priority == SHADOW_LANE else self.trial.version_of(kind)
        return version_lane(version) if version else self.priority

    @property
    def is_tainted(self) -> bool:
        """True when the sender passed on something untrusted."""
        return any(_decode_label(item).outcome.trust == "untrusted" for item in self.context)


class _LabelledOutcome(msgspec.Struct):
    trust: Trust = "trusted"


class _LabelledItem(msgspec.Struct):
    outcome: _LabelledOutcome


NIL: Final = UUID(int=0)
NO_BRIEF: Final = Brief(NIL, NIL, "", "")
decode_brief: Final = msgspec.json.Decoder(Brief).decode
_decode_label: Final = msgspec.json.Decoder(_LabelledItem).decode


def changed_brief(brief: Brief, changes: msgspec.Raw) -> Brief:
    """Apply a JSON Merge Patch to what was submitted."""
    return decode_brief(msgspec.json.encode(merged(msgspec.json.decode(msgspec.json.encode(brief)), msgspec.json.decode(changes))))
