"""Content-addressed files: what tasks read (attachments) and make (reports, charts, diffs, mails)."""

from __future__ import annotations

from typing import Protocol

from crewlog.schemas.ids import Hash
from crewlog.schemas.values import ArtifactRef


class ArtifactStore(Protocol):
    """Files by the sha-256 of their bytes. Putting the same bytes twice stores them once."""

    async def put(self, name: str, data: bytes, media_type: str | None = None) -> ArtifactRef:
        """Store a file; the media type is guessed from the name when not given."""

    async def get(self, hash_: Hash | str) -> bytes:
        """Fetch a file and check its bytes against the hash.

        Raises:
            NotFound: no such file.
            TerminalError: the stored bytes do not have this hash.
        """

    async def delete(self, hash_: Hash) -> bool:
        """Delete a file; False when it was not there. Whoever asks must know that nobody needs it any more."""
