"""What a tool needs to run by itself: a task, files in memory, a context. The tools under test are the real ones."""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from crewlog.agents.spec import AgentSpec, ToolContext, ToolOutput
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash
from crewlog.schemas.plan import Constraints
from crewlog.schemas.task import AgentTask, Attachment
from crewlog.schemas.values import ArtifactRef, Citation, ContextItem, Outcome, Trust

TASK_ID = UUID("00000000-0000-4000-8000-000000000001")


@dataclass
class MemoryArtifacts:
    """The `ArtifactStore` port over a dictionary."""

    files: dict[str, bytes] = field(default_factory=dict)

    async def put(self, name: str, data: bytes, media_type: str | None = None) -> ArtifactRef:
        self.files[content_hash(data)] = data
        return ArtifactRef(name, content_hash(data), len(data), media_type or mimetypes.guess_type(name)[0] or "application/octet-stream")

    async def get(self, hash_: Hash | str) -> bytes:
        if hash_ not in self.files:
            raise NotFound("artifact", hash_)
        return self.files[hash_]

    async def delete(self, hash_: Hash) -> bool:
        return self.files.pop(hash_, None) is not None


@dataclass
class Bench:
    """One task at which tools are called in turn, as the worker does: artifacts of earlier calls reach the later ones."""

    task: AgentTask
    artifacts: MemoryArtifacts = field(default_factory=MemoryArtifacts)
    made: list[ArtifactRef] = field(default_factory=list)
    calls: int = 0
    trust: Trust = "trusted"

    def context(self) -> ToolContext:
        self.calls += 1
        return ToolContext(self.task, f"c{self.calls}", f"{self.calls:032x}", self.artifacts, Path("/nonexistent"), tuple(self.made), trust=self.trust)

    async def call(self, agent: AgentSpec, tool: str, arguments: Mapping[str, Any]) -> ToolOutput:
        spec = next(t for t in agent.tools_for(self.task) if t.name == tool)
        output = await spec.run(self.context(), spec.args.model_validate_json(json.dumps(arguments)))
        self.made += output.artifacts
        return output


async def bench(
    objective: str = "Do it.",
    *,
    kind: str = "research",
    key: str | None = None,
    attachments: Mapping[str, bytes] | None = None,
    context: Sequence[ContextItem] = (),
    constraints: Constraints | None = None,
    auto_approve: bool = False,
    tenant: str = "default",
) -> Bench:
    """Set up a task whose attachments are stored."""
    artifacts = MemoryArtifacts()
    refs = [await artifacts.put(name, data) for name, data in (attachments or {}).items()]
    task = AgentTask(
        task_id=TASK_ID,
        run_id=TASK_ID,
        key=key,
        tenant=tenant,
        type=kind,
        objective=objective,
        attachments=tuple(Attachment(name=r.name, hash=r.hash, size=r.size, media_type=r.media_type) for r in refs),
        context=tuple(context),
        constraints=constraints or Constraints(),
        auto_approve=auto_approve,
    )
    return Bench(task, artifacts)


def earlier(
    key: str,
    summary: str = "Done.",
    *,
    artifacts: Sequence[ArtifactRef] = (),
    citations: Sequence[Citation] = (),
    flags: Sequence[str] = (),
    trust: Trust = "trusted",
    output: Any = None,
) -> ContextItem:
    """The outcome of an earlier task."""
    return ContextItem(key, "research", f"Objective of {key}.", Outcome(summary, output, tuple(artifacts), tuple(citations), tuple(flags), trust))
