"""An MCP server of a few lines, for `clerk.py`. Any other server is used the same way: crewlog only needs its command or its URL."""

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

TERMS = {
    "lease": "The time for which a dispatched task belongs to one worker; when it is over, somebody else may take the task.",
    "fence": "The version an append expects: whoever comes late finds another one and stops.",
    "projection": "A view that is folded from the log and can be thrown away and made again.",
}

server = MCPServer("glossary")


@server.tool(description="Define a term of the trade.")
def define(term: str) -> str:
    if term.lower() not in TERMS:
        raise ToolError(f"there is no entry for {term!r}; known are {', '.join(TERMS)}")
    return TERMS[term.lower()]


if __name__ == "__main__":
    server.run("stdio")
