"""The orchestrator, replay, the supervisor and everything people touch: client, command line, demo."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewlog.orchestrator.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # imported when it is used: the command line must not load everything to show its help
    if name == "Client":
        from crewlog.orchestrator.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
