from __future__ import annotations

import os
import zlib

import pytest

from crewlog.events.blobs import PLAIN, STORED_FOR_S, ZLIB, BlobCache, pack_blob, unpack_blob
from crewlog.events.clock import SystemClock
from crewlog.schemas.errors import TerminalError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash


@pytest.mark.parametrize(
    ("blob", "codec"),
    [(b"", PLAIN), (b"x" * 256, PLAIN), (b"x" * 257, ZLIB), (os.urandom(5000), PLAIN), (b"word " * 10_000, ZLIB)],
    ids=["empty", "small", "text", "random", "long"],
)
def test_packing_is_undone(blob: bytes, codec: int) -> None:
    used, data = pack_blob(blob)
    assert used == codec
    assert len(data) <= len(blob)
    assert unpack_blob(content_hash(blob), codec=used, size=len(blob), data=data) == blob


def test_other_bytes_than_the_hash_says_are_refused() -> None:
    right = content_hash(b"right")
    for codec, data in ((PLAIN, b"wrong"), (ZLIB, zlib.compress(b"wrong")), (ZLIB, b"no zlib"), (ZLIB, zlib.compress(bytes(10**7)))):
        with pytest.raises(TerminalError, match=right):
            unpack_blob(right, codec=codec, size=5, data=data)


def test_the_cache_is_bounded_and_forgets_what_was_not_used() -> None:
    cache = BlobCache(SystemClock(), bytes_max=1000, hashes_max=3)
    hashes = [Hash(f"{number:064}") for number in range(12)]
    for hash_ in hashes[:10]:
        cache.keep(hash_, b"x" * 100)
    assert set(cache.get_many(hashes[:2])) == set(hashes[:2])
    cache.keep(hashes[10], b"x" * 200)
    cache.keep(hashes[11], b"x" * 501)
    assert set(cache.get_many(hashes)) == {*hashes[:2], *hashes[4:11]}
    cache.note_stored(hashes[:3])
    assert cache.is_stored(hashes[0])
    cache.note_stored(hashes[3:4])
    assert [cache.is_stored(hash_) for hash_ in hashes[:4]] == [True, False, True, True]


def test_what_was_put_long_ago_is_put_again() -> None:
    class Late(SystemClock):
        at_s = 0.0

        def monotonic(self) -> float:
            return self.at_s

    clock = Late()
    cache = BlobCache(clock)
    cache.note_stored([Hash("0" * 64)])
    assert cache.is_stored(Hash("0" * 64))
    clock.at_s = STORED_FOR_S
    assert not cache.is_stored(Hash("0" * 64))
