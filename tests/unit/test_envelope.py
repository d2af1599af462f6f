"""The envelope: what is enciphered opens only with its key and in its place; keys come from where the configuration says."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from crewlog.events import kek
from crewlog.events.envelope import Cipher, DataKey, KeyEncryptionKey, enclosed, new_secret
from crewlog.events.kek import FILE, kek_source, make_kek
from crewlog.schemas.codec import decode, encode
from crewlog.schemas.errors import ConfigError, TerminalError
from crewlog.schemas.ids import Stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.public_form import PERSONAL
from crewlog.schemas.task_events import Nudged, TaskHandedBack

STREAM = Stream("task/one")
EVENT_ID = UUID(int=7)


def key() -> DataKey:
    return DataKey(uuid4(), new_secret())


@given(st.text(max_size=2_000))
def test_an_event_comes_back_byte_for_byte(text: str) -> None:
    own = key()
    document = encode(Nudged("loop", text))
    stored = own.enclose(Nudged("loop", text), document, EVENT_ID, STREAM)
    part = enclosed(stored)
    if not text:
        assert (stored, part) == (document, None)
        return
    assert part is not None
    assert part.key_id == own.key_id
    assert own.disclose(part.data, EVENT_ID, STREAM, "Nudged") == document
    assert decode("Nudged", 1, stored) == Nudged("loop", PERSONAL), "programs without the key read what is public"


def test_an_event_without_anything_personal_is_stored_as_it_is() -> None:
    event = TaskHandedBack(1, "kind/code", 1)
    assert key().enclose(event, encode(event), EVENT_ID, STREAM) == encode(event)


def test_it_opens_nowhere_else() -> None:
    own, event = key(), Nudged("loop", "secret")
    part = enclosed(own.enclose(event, encode(event), EVENT_ID, STREAM))
    assert part is not None
    places = ((UUID(int=8), STREAM, "Nudged"), (EVENT_ID, Stream("task/two"), "Nudged"), (EVENT_ID, STREAM, "RunCancelled"))
    for event_id, stream, type_ in places:
        with pytest.raises(TerminalError, match="does not open"):
            own.disclose(part.data, event_id, stream, type_)
    with pytest.raises(TerminalError, match="does not open"):
        key().disclose(part.data, EVENT_ID, STREAM, "Nudged")
    with pytest.raises(TerminalError, match="does not open"):
        own.disclose(part.data[:-1] + bytes((part.data[-1] ^ 1,)), EVENT_ID, STREAM, "Nudged")


@pytest.mark.parametrize("text", ["~", 'x","personal":"v1.0.0~', "v1.00000000000000000000000000000000.AAAA~"])
def test_a_text_does_not_pass_for_an_envelope(text: str) -> None:
    assert enclosed(encode(Nudged("loop", text))) is None


@pytest.mark.parametrize("data", [b'{"personal":"v1.%b.A~"}' % (b"0" * 32), b'{"more":%b%b,"personal":"~"}' % (b"[" * 20_000, b"]" * 20_000)])
def test_what_nobody_here_has_enciphered_stops_no_reader(data: bytes) -> None:
    assert enclosed(data) is None


def test_the_same_event_never_looks_the_same() -> None:
    own, event = key(), Nudged("loop", "secret")
    assert own.enclose(event, encode(event), EVENT_ID, STREAM) != own.enclose(event, encode(event), EVENT_ID, STREAM)


@given(st.binary(max_size=2_000))
def test_large_texts_are_bound_to_their_hash(text: bytes) -> None:
    own, hash_ = key(), content_hash(text)
    kept = own.enclose_text(hash_, text)
    assert own.disclose_text(hash_, kept) == text
    with pytest.raises(TerminalError, match="does not open"):
        own.disclose_text(content_hash(text + b"x"), kept)


def test_a_data_key_is_bound_to_its_person() -> None:
    kek, secret, key_id = KeyEncryptionKey(new_secret()), new_secret(), uuid4()
    wrapped = kek.wrap(secret, key_id, "default", "ada")
    assert kek.unwrap(wrapped, key_id, "default", "ada") == secret
    assert kek.unwrap(wrapped, key_id, "default", "bob") is None
    assert kek.unwrap(wrapped, uuid4(), "default", "ada") is None
    assert KeyEncryptionKey(new_secret()).unwrap(wrapped, key_id, "default", "ada") is None


def test_nothing_that_is_cut_opens() -> None:
    assert Cipher(new_secret()).decipher(b"short", b"") is None


# where the key-encryption key comes from


def test_the_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    assert make_kek(tmp_path)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    first = kek_source(None, tmp_path)().kek_id
    assert not make_kek(tmp_path)
    assert kek_source(None, tmp_path)().kek_id == first


def test_a_key_that_somebody_made_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def overtaken() -> bytes:
        monkeypatch.undo()
        assert make_kek(tmp_path)
        made.append(kek_source(None, tmp_path)().kek_id)
        return new_secret()

    monkeypatch.setattr(kek, "new_secret", overtaken)
    assert not make_kek(tmp_path)
    assert [kek_source(None, tmp_path)().kek_id] == made
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_setting_goes_before_the_file(tmp_path: Path) -> None:
    make_kek(tmp_path)
    assert kek_source(SecretStr("A" * 43 + "="), tmp_path)().kek_id != kek_source(None, tmp_path)().kek_id


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_kek(tmp_path)
    (tmp_path / FILE).chmod(0o640)
    for use in (lambda: make_kek(tmp_path), kek_source(None, tmp_path)):
        with pytest.raises(ConfigError, match="may be read by others") as caught:
            use()
        assert "chmod 600" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "not base64!", "QUJD", "é" * 44])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes in base64") as caught:
        kek_source(SecretStr(text), tmp_path)()
    assert not text or text not in str(caught.value)


def test_without_any_key_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key-encryption key") as caught:
        kek_source(None, tmp_path)()
    assert "CREWLOG_PERSON_KEK" in str(caught.value.hint)
