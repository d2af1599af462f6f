"""What the two wires of the OpenAI SDK share: the connection, its errors, and how they say results and answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from crewlog.agents.model import ModelError
from crewlog.agents.model_errors import malformed, refusal, unreachable
from crewlog.agents.model_http import client_options
from crewlog.agents.schema_dialect import NotStrict, Schema, express
from crewlog.schemas.blocks import OutputFormat, ToolResult

if TYPE_CHECKING:
    import openai


class Connection:
    """The SDK's client, made when it is first used. Its own retries are off.

    Args:
        asked: the model's name, for messages.
        api_key: sent to the provider, never logged.
        base_url: address of the API with `/v1`; None for the SDK's default (or `OPENAI_BASE_URL`).
    """

    def __init__(self, asked: str, *, api_key: str, base_url: str | None) -> None:
        self._asked, self._api_key, self._base_url = asked, api_key, base_url
        self._client: openai.AsyncOpenAI | None = None

    def open(self, sdk: Any) -> openai.AsyncOpenAI:
        """Return the client."""
        if self._client is None:
            self._client = sdk.AsyncOpenAI(
                api_key=self._api_key, base_url=self._base_url, max_retries=0, http_client=sdk.DefaultAsyncHttpx2Client(**client_options(self._asked))
            )
        return self._client

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def explain(self, error: openai.OpenAIError) -> ModelError:
        """Translate an error of the SDK."""
        import openai

        match error:
            case openai.APITimeoutError():
                return ModelError("timeout", f"no answer from {self._asked}")
            case openai.APIConnectionError():
                return unreachable(self._asked, error.__cause__ or error)
            case openai.APIStatusError():
                names = (error.code, error.type)
                message = error.body.get("message") or error.message if isinstance(error.body, dict) else error.message
                return refusal(self._asked, error.status_code, names, message, headers=error.response.headers, request_id=error.request_id)
            case _:
                return malformed(self._asked, f"what the SDK does not understand: {error}")

    def refused(self, error: dict[str, Any], *, request_id: str = "") -> ModelError:
        """Translate an error object that came inside an answer or a stream."""
        code = error.get("code")
        status = code if isinstance(code, int) else 0
        names = (code if isinstance(code, str) else None, error.get("type"))
        return refusal(self._asked, status, names, error.get("message") or error, request_id=request_id)


def strict_or_plain(schema: Schema) -> tuple[Schema, bool]:
    """Return a schema and whether it is strict: as strict mode takes it, or as it is where strict mode cannot say it."""
    try:
        return express(schema, "openai"), True
    except NotStrict:
        return schema, False


def output_schema(output: OutputFormat, *, strict: bool = True) -> dict[str, Any]:
    """Describe the structured answer that is wanted."""
    schema, is_strict = strict_or_plain(output.schema) if strict else (output.schema, False)
    return {"name": output.name, "strict": is_strict, "schema": schema}


def result_text(block: ToolResult) -> str:
    """Return a tool result as text. These wires have no flag for an error, so it is said in the text."""
    return json.dumps({"error": block.content}, ensure_ascii=False) if block.is_error else block.content
