"""The knowledge port: search in the documents of a tenant. The index behind it is a projection of `DocumentIngested`, so it may lag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from crewlog.schemas.ids import Hash

DOCUMENTS_MAX: Final = 10_000
"""Most documents one listing returns, by name."""


class Passage(NamedTuple):
    """A stretch of a document that fits a query. Its `text` begins at `line` (from 1); a higher `rank` fits better."""

    document: Hash
    name: str
    line: int
    text: str
    rank: float


class DocumentInfo(NamedTuple):
    """One indexed document. `document` names its bytes, `text` the blob of its extracted text."""

    document: Hash
    name: str
    title: str
    media_type: str
    lines: int
    library: bool
    text: Hash


class Knowledge(Protocol):
    """Search over ingested documents. Everything is limited to one tenant."""

    async def search(self, tenant: str, query: str, documents: Sequence[Hash] | None, limit: int) -> list[Passage]:
        """Find passages by words and their stems, best first; ties by document and line.

        Args:
            query: words as people type them; "quoted words" are a phrase.
            documents: search only these; None searches the tenant's library.
            limit: most passages to return.
        """

    async def documents(self, tenant: str, hashes: Sequence[Hash] | None) -> list[DocumentInfo]:
        """List indexed documents by name: these, as far as they are indexed, or the tenant's library when None."""

    async def wait_indexed(self, position: int, timeout_s: float) -> None:
        """Wait until the index has taken in the log up to `position`.

        Raises:
            Unavailable: it has not within `timeout_s` seconds; says how far it is.
        """
