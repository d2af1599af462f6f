"""Settings of MCP servers: how each is reached, which kinds of agent get its tools, and how far these are trusted.

In crewlog.toml a server is a table `[mcp.NAME]`; in the environment `CREWLOG_MCP` is one JSON object of them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from crewlog.schemas.checks import Kind, SafeText
from crewlog.schemas.effects import Effect


def _server_name(name: str) -> str:
    if not name.isascii() or not name.replace("-", "").isalnum() or len(name) > 32 or not name[0].isalpha():
        raise ValueError("must be a letter followed by at most 31 letters, digits or hyphens: it becomes part of the names of its tools")
    return name


ServerName = Annotated[str, Field(min_length=1), AfterValidator(_server_name)]


class McpToolRules(BaseModel):
    """What the operator says about one tool. None keeps what the server's settings say; hints of the server itself are not believed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    effect: Effect | None = None
    needs_approval: bool | None = None
    calls_max: Annotated[int, Field(ge=1)] | None = None
    """Most calls in one task."""


class McpServer(BaseModel):
    """One server: either `command`, which is started and spoken to over its standard input and output, or `url` (streamable HTTP)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    """Kinds of agent that get its tools."""
    command: Annotated[SafeText, Field(min_length=1)] | None = None
    args: tuple[SafeText, ...] = ()
    env: dict[str, SecretStr] = Field(default_factory=dict)
    """Environment of the command besides HOME, LANG, PATH and TMPDIR. Nothing of crewlog's own is passed on."""
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Headers of each request, such as `Authorization`."""
    tools: tuple[str, ...] = ()
    """Tools that are used, by the names the server gives them; empty means all."""
    effect: Effect = "irreversible"
    """What a call does to the world, unless `rules` say otherwise. `read` and `idempotent` calls are run again after a crash."""
    needs_approval: bool = True
    """Whether a person must agree to each call, unless `rules` say otherwise."""
    rules: dict[str, McpToolRules] = Field(default_factory=dict)
    """Exceptions, by the names the server gives its tools."""
    accept: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")], ...] = ()
    """Digests (or their first 12 digits or more) of changed definitions that may be used from now on."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long one call may take, in seconds."""

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> McpServer:
        if (self.command is None) == (self.url is None):
            raise ValueError("set either command or url")
        if self.command is None and (self.args or self.env):
            raise ValueError("args and env belong to command, not to url")
        if self.url is not None and "@" in self.url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError("credentials belong into headers, not into url: a URL is shown in logs")
        if self.url is None and self.headers:
            raise ValueError("headers belong to url, not to command")
        return self

    def rule(self, tool: str) -> McpToolRules:
        """Return what holds for one tool, defaults filled in."""
        own = self.rules.get(tool, McpToolRules())
        return McpToolRules(
            effect=own.effect or self.effect,
            needs_approval=self.needs_approval if own.needs_approval is None else own.needs_approval,
            calls_max=own.calls_max,
        )
