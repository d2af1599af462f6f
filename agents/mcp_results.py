"""Translate what an MCP tool returns: text for the model, files as artifacts, errors as errors. Nothing in it is trusted or followed."""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
from typing import Any, Final

from mcp.types import AudioContent, CallToolResult, ContentBlock, EmbeddedResource, ImageContent, ResourceLink, TextContent

from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput
from crewlog.schemas.text import clean, shorten
from crewlog.schemas.values import ArtifactRef

BLOCKS_MAX: Final = 100

_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,60}")


async def to_output(result: CallToolResult, context: ToolContext, tool: str) -> ToolOutput:
    """Return a result as our own; binary content becomes artifacts that it names.

    Args:
        tool: name of the tool here; it becomes part of file names.

    Raises:
        ToolFailed: the tool says that it failed; the text is what it says.
    """
    parts: list[str] = []
    files: list[ArtifactRef] = []
    for number, block in enumerate(result.content[:BLOCKS_MAX], 1):
        data, media_type, text = _read(block)
        if data is not None:
            suffix = mimetypes.guess_extension(media_type) or ".bin"
            files.append(await context.artifacts.put(f"mcp/{tool}-{context.call_id}-{number}{suffix}", data, media_type))
            text = f"[{media_type}, {len(data)} bytes, kept as {files[-1].name}]"
        parts.append(text)
    if len(result.content) > BLOCKS_MAX:
        parts.append(f"[{len(result.content) - BLOCKS_MAX} of {len(result.content)} parts left out]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    content = clean("\n".join(parts))
    if result.is_error:
        raise ToolFailed(content or "the tool failed and did not say why")
    return ToolOutput(content or "(the tool returned nothing)", tuple(files))


def _read(block: ContentBlock) -> tuple[bytes | None, str, str]:
    """Return the bytes and media type of binary content, or the text of anything else."""
    match block:
        case TextContent():
            return None, "", block.text
        case ImageContent() | AudioContent():
            return _decoded(block.data, block.mime_type)
        case ResourceLink():
            return None, "", f"[resource {shorten(block.name, 200)}: {shorten(str(block.uri), 500)}]"
        case EmbeddedResource():
            resource: Any = block.resource
            text = getattr(resource, "text", None)
            return (None, "", str(text)) if text is not None else _decoded(resource.blob, resource.mime_type or "")


def _decoded(data: str, media_type: str) -> tuple[bytes | None, str, str]:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None, "", "[a part that is not valid base64 was left out]"
    return content, media_type if _MEDIA_TYPE.fullmatch(media_type) else "application/octet-stream", ""
