"""An MCP server in bare JSON, so that it can say anything: `mcp_raw_server.py FILE [SECONDS]` answers tools/list with what FILE holds at that moment.

`FILE` holds a JSON list of tools; SECONDS is how long it takes to begin. Other words: `exit` ends at once, `junk` writes no protocol, `silent` never answers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Answer line by line."""
    mode = sys.argv[1]
    if mode == "exit":
        sys.exit("no licence found")
    if mode == "junk":
        print("Welcome to my server!", flush=True)
    if mode == "silent":
        time.sleep(3600)
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue
        result: dict[str, object] | None = None
        if asked["method"] == "initialize":
            time.sleep(float((*sys.argv[2:], "0")[0]))
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "raw", "version": "1"}}
        elif asked["method"] == "tools/list":
            result = {"tools": json.loads(Path(mode).read_text())}
        elif asked["method"] == "tools/call":
            result = {"content": [{"type": "text", "text": f"called {asked['params']['name']}"}]}
        error = {"error": {"code": -32601, "message": "unknown method"}}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **({"result": result} if result is not None else error)}), flush=True)


if __name__ == "__main__":
    main()
