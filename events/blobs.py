"""Content-addressed blobs: how they are packed, and what a process remembers of them."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from crewlog.events.clock import Clock
from crewlog.schemas.errors import TerminalError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash

PLAIN: Final = 0
ZLIB: Final = 1

COMPRESS_BYTES_MIN: Final = 256
STORED_HASHES_MAX: Final = 20_000
STORED_FOR_S: Final = 3600.0
"""A blob that was put longer ago is put again when it is needed, so that the log knows that it is still in use."""
CACHE_BYTES_MAX: Final = 16 * 1024 * 1024


def pack_blob(blob: bytes) -> tuple[int, bytes]:
    """Return codec and bytes as stored: compressed when that pays. Level 1 costs a third of the default and packs nearly as well."""
    if len(blob) > COMPRESS_BYTES_MIN:
        packed = zlib.compress(blob, 1)
        if len(packed) < len(blob):
            return ZLIB, packed
    return PLAIN, blob


def unpack_blob(hash_: Hash, *, codec: int, size: int, data: bytes) -> bytes:
    """Return the bytes that were put under `hash_`.

    Raises:
        TerminalError: the stored bytes are not those; nobody may act on them.
    """
    try:
        blob = unpack_packed(codec, data, size_max=size)
    except TerminalError as error:
        raise TerminalError(f"blob {hash_} cannot be unpacked: {error}") from error
    if content_hash(blob) != hash_:
        raise TerminalError(f"blob {hash_} is stored with other bytes; restore it from a backup of the log")
    return blob


def unpack_packed(codec: int, data: bytes, *, size_max: int) -> bytes:
    """Undo `pack_blob`; no more than one byte over `size_max` comes out.

    Raises:
        TerminalError: it is no such thing.
    """
    try:
        return zlib.decompressobj().decompress(data, size_max + 1) if codec == ZLIB else data
    except zlib.error as error:
        raise TerminalError(str(error)) from error


class BlobCache:
    """What this process knows to be stored, and the blobs it used last, both bounded."""

    def __init__(self, clock: Clock, *, bytes_max: int = CACHE_BYTES_MAX, hashes_max: int = STORED_HASHES_MAX) -> None:
        self._clock = clock
        self._bytes_max, self._hashes_max = bytes_max, hashes_max
        self._stored: OrderedDict[Hash, float] = OrderedDict()
        """When each was put."""
        self._blobs: OrderedDict[Hash, bytes] = OrderedDict()
        self._bytes = 0

    def is_stored(self, hash_: Hash) -> bool:
        """Say whether the log is known to have this blob, so that it need not be sent again."""
        put_s = self._stored.get(hash_)
        if put_s is None or self._clock.monotonic() - put_s >= STORED_FOR_S:
            return False
        self._stored.move_to_end(hash_)
        return True

    def note_stored(self, hashes: Iterable[Hash]) -> None:
        """Remember that the log has these blobs."""
        now_s = self._clock.monotonic()
        for hash_ in hashes:
            self._stored[hash_] = now_s
            self._stored.move_to_end(hash_)
        while len(self._stored) > self._hashes_max:
            self._stored.popitem(last=False)

    def keep(self, hash_: Hash, blob: bytes) -> None:
        """Keep a blob; the ones that were not used for longest make room. One that would fill the cache alone is not kept."""
        if hash_ in self._blobs or len(blob) > self._bytes_max // 2:
            return
        self._blobs[hash_] = blob
        self._bytes += len(blob)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._blobs.popitem(last=False)[1])

    def get_many(self, hashes: Sequence[Hash]) -> dict[Hash, bytes]:
        """Return those of the blobs that are kept."""
        found: dict[Hash, bytes] = {}
        for hash_ in hashes:
            if hash_ in self._blobs:
                self._blobs.move_to_end(hash_)
                found[hash_] = self._blobs[hash_]
        return found
