"""Any NATS client can hand in work; it needs to know JSON and nothing of us:  python publish_task.py "$(crewlog nats url --client)" """

import asyncio
import json
import sys
import uuid

import nats


async def main(url: str) -> None:
    client = await nats.connect(url)
    task_id = str(uuid.uuid4())  # made by the sender: sending the same task again is harmless
    events = await client.subscribe(f"events.default.{task_id}.*")
    await client.flush()

    task = {"task_id": task_id, "type": "research", "objective": "What does the library say about missing values?"}
    await client.publish("tasks.default.research", json.dumps(task).encode())

    async for message in events.messages:
        event = json.loads(message.data)
        print(event["type"])
        if event["type"] in ("RunCompleted", "RunFailed"):
            print(json.dumps(event["data"], indent=2))
            break
    await client.close()


asyncio.run(main(sys.argv[1]))
