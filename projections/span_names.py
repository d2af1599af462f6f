"""Names of spans' attributes and of metrics: the one place to change when the conventions do.

Generative AI: semantic conventions 1.41, which today's backends understand, and `cache_write` beside `cache_creation`, which later ones
read. Messaging: semantic conventions 1.41. `orch.*` is crewlog's own.
"""

from __future__ import annotations

from typing import Final

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
CONVERSATION: Final = "gen_ai.conversation.id"
"""The run's id, on every span of it."""
WORKFLOW: Final = "gen_ai.workflow.name"
AGENT: Final = "gen_ai.agent.name"
AGENT_VERSION: Final = "gen_ai.agent.version"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
OUTPUT_TYPE: Final = "gen_ai.output.type"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""Cache reads and writes included."""
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105  (tokens of language models)
TOOL: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL: Final = "gen_ai.tool.call.id"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
MESSAGE_ID: Final = "messaging.message.id"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"

ERROR_TYPE: Final = "error.type"
STATUS_CODE: Final = "http.response.status_code"
SPAN_KIND: Final = "openinference.span.kind"
"""Phoenix knows no workflows and no messages; it shows both as parts of a chain."""
CHAIN: Final = "CHAIN"

TENANT: Final = "orch.tenant"
USER: Final = "enduser.id"
RUN_STATUS: Final = "orch.run.status"
TASK: Final = "orch.task.id"
TASK_KEY: Final = "orch.task.key"
ATTEMPT: Final = "orch.task.attempt"
ENDED: Final = "orch.task.ended"
"""How a worker's hold on a task ended: completed, failed, suspended, cancelled or interrupted."""
SIMULATED: Final = "orch.simulated"
COST: Final = "orch.cost.usd"
PRICE_SOURCE: Final = "orch.cost.source"
TOOL_STATUS: Final = "orch.tool.status"
REPLAY_OF: Final = "orch.replay_of"

OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105  (likewise)
TOOL_DURATION: Final = "gen_ai.execute_tool.duration"
AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
WORKFLOW_DURATION: Final = "gen_ai.invoke_workflow.duration"
