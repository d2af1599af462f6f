"""Enciphering what is personal: events and texts under the data key of a person, data keys under the key-encryption key.

All of it is AES-256-GCM with a fresh 96-bit nonce (NIST SP 800-38D). What is enciphered is bound to its place: an event to its id, stream
and type, a text to its hash, a data key to its id and person. Moved elsewhere, or changed, it does not open.

An event is stored as its public form with one field more, `personal`: `v1.<key id>.<nonce and ciphertext in base64url>~`. The `~` at the very
end of the document tells it apart from any other event by three bytes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.blobs import pack_blob, unpack_packed
from crewlog.schemas.codec import Event, encode, type_name
from crewlog.schemas.errors import TerminalError
from crewlog.schemas.ids import Hash, Stream
from crewlog.schemas.public_form import public_form

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAIL: Final = b'~"}'
"""How the stored form of an enciphered event ends."""
_PERSONAL: Final = re.compile(r"v1\.([0-9a-f]{32})\.([A-Za-z0-9_-]+=*)~")
_UNPACKED_BYTES_MAX: Final = 16 * 1024 * 1024


class _Stored(msgspec.Struct, frozen=True):
    personal: str | None = None


_decoder: Final = msgspec.json.Decoder(_Stored)


class Enclosed(NamedTuple):
    """The enciphered part of an event as stored: under which key, and the bytes."""

    key_id: UUID
    data: bytes


def enclosed(data: bytes) -> Enclosed | None:
    """Return the enciphered part of an event's data, None for an event that is stored as it is."""
    if not data.endswith(TAIL):
        return None
    try:
        found = _PERSONAL.fullmatch(_decoder.decode(data).personal or "")
        return Enclosed(UUID(found[1]), urlsafe_b64decode(found[2])) if found else None
    except (msgspec.MsgspecError, ValueError, RecursionError):  # no JSON, no base64, or nested deeper than Python follows: nothing that we have written
        return None


def hollow(public: bytes, key_id: UUID) -> bytes:
    """Return the stored form of an event of which only the public form is known, under a key that is destroyed."""
    return b'%b,"personal":"v1.%b.AA==~"}' % (public[:-1], key_id.hex.encode())


class Cipher:
    """AES-256-GCM under one secret key of 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # takes 20 ms to load, and most processes never need it

        self._aead: Any = AESGCM(secret)

    def encipher(self, data: bytes, place: bytes) -> bytes:
        """Encipher bytes for one place; what comes out is 28 bytes longer."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + bytes(self._aead.encrypt(nonce, data, place))

    def decipher(self, data: bytes, place: bytes) -> bytes | None:
        """Decipher; None when it was enciphered with another key or for another place, or was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return bytes(self._aead.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], place))
        except (InvalidTag, ValueError):
            return None


class DataKey:
    """The key of one person for one run: turns events and texts into what is stored, and back."""

    def __init__(self, key_id: UUID, secret: bytes) -> None:
        self.key_id, self._cipher = key_id, Cipher(secret)

    def enclose(self, event: Event, document: bytes, event_id: UUID, stream: Stream) -> bytes:
        """Return what is stored for an event: its JSON itself when nothing in it is personal."""
        public = public_form(event)
        return document if public is event else self._stored(encode(public), document, _place(event_id, stream, type_name(event)))

    def disclose(self, data: bytes, event_id: UUID, stream: Stream, type_: str) -> bytes:
        """Return the JSON of an event as it was written, from the enciphered part of what is stored.

        Raises:
            TerminalError: it is not what this key enciphered for this event.
        """
        return self._opened(data, _place(event_id, stream, type_), f"event {event_id} of {stream}")

    def enclose_text(self, hash_: Hash, text: bytes) -> bytes:
        """Encipher a large text under its hash."""
        return self._cipher.encipher(_packed(text), bytes.fromhex(hash_))

    def disclose_text(self, hash_: Hash, data: bytes) -> bytes:
        """Decipher a large text.

        Raises:
            TerminalError: it is not what this key enciphered under this hash.
        """
        return self._opened(data, bytes.fromhex(hash_), f"blob {hash_}")

    def _stored(self, public: bytes, document: bytes, place: bytes) -> bytes:
        text = urlsafe_b64encode(self._cipher.encipher(_packed(document), place))
        return b'%b,"personal":"v1.%b.%b~"}' % (public[:-1], self.key_id.hex.encode(), text)

    def _opened(self, data: bytes, place: bytes, what: str) -> bytes:
        packed = self._cipher.decipher(data, place)
        if packed is None:
            raise TerminalError(f"{what} does not open with the key {self.key_id} that it names: it was changed, or moved; restore it from a backup")
        return unpack_packed(packed[0], packed[1:], size_max=_UNPACKED_BYTES_MAX)


def _packed(data: bytes) -> bytes:
    codec, packed = pack_blob(data)
    return bytes((codec,)) + packed


def _place(event_id: UUID, stream: Stream, type_: str) -> bytes:
    return b"\0".join((event_id.bytes, stream.encode(), type_.encode()))


class KeyEncryptionKey:
    """The key-encryption key: wraps data keys for the database. Whoever has it and the database can read everything; neither is enough alone."""

    def __init__(self, secret: bytes) -> None:
        self.kek_id: Final = hashlib.sha256(b"crewlog kek" + secret).hexdigest()[:16]
        self._cipher = Cipher(secret)

    def wrap(self, secret: bytes, key_id: UUID, tenant: str, person: str) -> bytes:
        """Encipher a data key for its row."""
        return self._cipher.encipher(secret, _row(key_id, tenant, person))

    def unwrap(self, wrapped: bytes, key_id: UUID, tenant: str, person: str) -> bytes | None:
        """Return a data key; None when this is not what wrapped it, or the row was changed."""
        return self._cipher.decipher(wrapped, _row(key_id, tenant, person))


def _row(key_id: UUID, tenant: str, person: str) -> bytes:
    return b"\0".join((key_id.bytes, tenant.encode(), person.encode()))


def new_secret() -> bytes:
    """Return 32 fresh random bytes from the operating system."""
    return secrets.token_bytes(KEY_BYTES)
