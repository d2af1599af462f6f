"""Hand in a task and get a verdict after it was committed:  python request_reply.py "$(crewlog nats url --client)" """

import asyncio
import json
import sys
import uuid
from urllib.parse import urlsplit

import nats


async def main(url: str) -> None:
    client = await nats.connect(url, inbox_prefix=f"_INBOX_{urlsplit(url).username}")  # each login hears its own answers only
    good = {"task_id": str(uuid.uuid4()), "type": "research", "objective": "What does the library say about missing values?"}
    bad = {"task_id": "not-a-uuid", "type": "research", "objective": ""}
    for task in (good, bad):
        reply = await client.request("api.default.tasks.submit", json.dumps(task).encode(), timeout=5)
        print(json.dumps(json.loads(reply.data), indent=2))
    await client.close()


asyncio.run(main(sys.argv[1]))
