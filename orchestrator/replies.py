"""What the orchestrator answers: `{"ok": true, …}` or `{"ok": false, "error": {…}}`, for every error alike."""

from __future__ import annotations

from typing import Any

import msgspec

from crewlog.schemas.errors import ContractError, OrchestrationError


def accepted(**fields: Any) -> bytes:
    """Encode a good answer."""
    return msgspec.json.encode({"ok": True, **fields})


def refused(error: Exception) -> bytes:
    """Encode an error. Only errors of our own tree say what happened; any other is a defect whose details stay in our log."""
    if not isinstance(error, OrchestrationError):
        return _refusal("internal", "an internal error occurred; the orchestrator's log has the details", ())
    problems = error.problems if isinstance(error, ContractError) else ()
    return _refusal(error.code, error.message if isinstance(error, ContractError) and problems else str(error), problems)


def _refusal(code: str, message: str, problems: tuple[tuple[str, str], ...]) -> bytes:
    listed = [{"pointer": pointer, "message": text} for pointer, text in problems]
    return msgspec.json.encode({"ok": False, "error": {"code": code, "message": message, "problems": listed}})
