"""A specialist whose tools come from an MCP server. Needs crewlog[mcp]; run it beside a crew, in the folder of this file:

    crewlog agent clerk:AGENT
    crewlog submit 'Define "lease"' --type clerk --wait

with this in crewlog.toml:

    [mcp.glossary]
    kinds = ["clerk"]                # who gets its tools
    command = "python"               # or: url = "https://…/mcp", headers = { Authorization = "Bearer …" }
    args = ["glossary_server.py"]

    [mcp.glossary.rules.define]      # without this, a person must agree to each call: what a server says of itself is not believed
    effect = "read"
    needs_approval = false

The tool is called `glossary__define`. Its definition is pinned in the log when it is first seen; should the server change it, it is not
called until the new digest stands in `accept`.
"""

from crewlog.agents import AgentSpec

AGENT = AgentSpec(
    kind="clerk",
    description="Looks up what terms of the trade mean.",
    instructions="Look each term of the objective up with the glossary, and answer with what it says. Say so when a term is not in it.",
)
