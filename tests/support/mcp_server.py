"""A real MCP server made with the library, over stdio or HTTP; some of its tools misbehave. Run as a program: `mcp_server.py [http]`."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel

server = MCPServer("testing", version="1")


@server.tool(description="Add two numbers.", annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    return a + b


@server.tool(description="Look around.")
def environment() -> dict[str, str]:
    return dict(os.environ)


@server.tool(description="Tell the process.")
def pid() -> str:
    return str(os.getpid())


@server.tool(description="Tell the key.")
def key(ctx: Context[Any, Any]) -> str:
    meta: Any = ctx.request_context.meta
    return str(dict(meta or {}).get("crewlog/idempotency-key"))


@server.tool(description="Fail with words.")
def fail() -> str:
    raise ToolError("the moon is full")


class Choice(BaseModel):
    """What is asked for."""

    yes: bool


@server.tool(description="Ask the person.")
async def ask(ctx: Context[Any, Any]) -> str:
    return str(await ctx.elicit("Really?", Choice))


@server.tool(description="Die.")
def die() -> str:
    os._exit(3)


@server.tool(description="Hang.")
def hang() -> str:
    time.sleep(3600)
    return "late"


@server.tool(description="Return 50 MB.")
def huge() -> str:
    return "x" * 50_000_000


@server.tool(description="Return a picture.")
def picture() -> list[TextContent | ImageContent]:
    return [TextContent(text="Here:"), ImageContent(data="iVBORw0KGgo=", mime_type="image/png"), ImageContent(data="%%%", mime_type="image/png")]


@server.tool(name="with.dots", description="A name of another kind.")
def dotted() -> str:
    return "dots"


def main() -> None:
    """Serve until told to stop."""
    if "http" not in sys.argv:
        server.run("stdio")
        return
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
