"""What is different about a run that tries something out: a fork, an evaluation, a shadow. It is recorded with the run and travels with each
of its tasks, so that the agents obey it and a replay knows of it.

A plain frozen dataclass, because both pydantic (messages) and msgspec (events) understand it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

Effects = Literal["stub", "allow"]
"""What becomes of tool calls above class `read` that reach beyond their task. `stub`: none is carried out, each is recorded as stubbed."""

Stub = Literal["stubbed", "recorded", "missing"]
"""Instead of running, a call was answered with a note that nothing happened, with what the same call got in the run it is tried after, or, where
nothing may run, with an error because there was no such call."""

CURRENT: Final = "current"
"""In place of a version, for a fork: tasks under way go on with the prompts and tools that agents have now, of whichever version they are."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The rules of one trial."""

    effects: Effects = "stub"
    source: UUID | None = None
    """The run whose recorded results are served where the same tool is called with the same arguments."""
    fresh_reads: bool = False
    """Reading tools run all the same."""
    models: str = ""
    """Models in place of the crew's own, as in CREWLOG_MODELS; roles it does not name keep theirs."""
    agent_version: str = ""
    """Version that an agent must have to take a task of the run, or `KIND=VERSION` of certain kinds with commas; empty: any."""
    only_recorded: bool = False
    """Nothing runs that reads or reaches beyond its task: what the record does not have is an error."""
    name: str = ""
    """Of the evaluation or shadow it is part of: all its runs are charged to one budget, `trial/<tenant>/<name>`, an evaluation's besides the usual ones."""
    hard_micro_usd: int | None = None
    """The most that may be spent under this name; what the budget begins with."""
    prompts: dict[str, str] | None = None
    """Agent kind -> blob with the instructions that it gets in place of its own; `*` is for all other kinds."""

    @property
    def stubs_effects(self) -> bool:
        """Say whether nothing may reach beyond the run."""
        return self.effects == "stub"

    def prompt_of(self, kind: str) -> str | None:
        """Return the blob with the instructions of an agent kind, None when it keeps its own."""
        prompts = self.prompts or {}
        return prompts.get(kind, prompts.get("*"))

    def version_of(self, kind: str) -> str:
        """Return the version that an agent of a kind must have; empty: any."""
        if not self.agent_version:
            return ""
        versions = named_versions(self.agent_version)
        return versions.get(kind, versions.get("*", ""))


def named_versions(text: str) -> dict[str, str]:
    """Read `VERSION`, or `KIND=VERSION` of certain kinds with commas: agent kind -> version, `*` for all that are not named. Total."""
    if "=" not in text:
        return {"*": text.strip()}
    entries = (entry.partition("=") for entry in text.split(","))
    return {kind.strip() if equals else "*": (version if equals else kind).strip() for kind, equals, version in entries}
