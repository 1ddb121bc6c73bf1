"""Pseudonyms, compared with HMAC-SHA256 computed from SHA-256."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.privacy.pseudonyms import MIN_KEY_BYTES, Pseudonyms, check_key, read_key

NAME, KEY = "UNISONO_TEST_KEY", "k" * MIN_KEY_BYTES


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the key into the environment."""
    monkeypatch.setenv(NAME, KEY)


def hmac_sha256(key: str, message: str) -> str:
    """The construction of RFC 2104, for a key of up to 64 bytes."""
    block = key.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message.encode()).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["ann", "Ödön", "", None, "ann"]),
        pa.chunked_array([["ann"], [], ["bob", None]], pa.large_string()),
        pa.array([7, -7, None, 2**40]),
        pa.array([7, 200, None], pa.uint8()),
        pa.chunked_array([pa.array(["b", "a", "b"]).dictionary_encode(), pa.array(["c", None]).dictionary_encode()]),
        pa.array([], pa.large_string()),
    ],
    ids=["strings", "chunks", "integers", "small integers", "dictionaries", "none"],
)
def test_each_id_becomes_the_first_half_of_its_hmac(ids: pa.Array) -> None:
    found = check_key(NAME).of(ids)
    assert found.type == pa.string()
    assert found.to_pylist() == [None if i is None else hmac_sha256(KEY, str(i))[:32] for i in ids.to_pylist()]


def test_an_integer_has_one_pseudonym_whatever_its_width() -> None:
    of = check_key(NAME).of
    assert of(pa.array([7], pa.int8())).equals(of(pa.array([7], pa.uint64())))


def test_another_key_has_another_fingerprint_and_other_pseudonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    one = check_key(NAME)
    hidden = one.of(pa.array(["ann"]))
    monkeypatch.setenv(NAME, KEY[:-1] + "x")
    other = check_key(NAME)
    assert one.fingerprint != other.fingerprint
    assert not hidden.equals(other.of(pa.array(["ann"])))
    with pytest.raises(JobError, match=f"privacy.pseudonyms.key_env: {NAME} holds another key here"):
        one.of(pa.array(["ann"]))


def test_what_travels_with_the_graph_does_not_hold_the_key() -> None:
    assert KEY not in repr(check_key(NAME))
    assert check_key(NAME) == Pseudonyms(NAME, check_key(NAME).fingerprint)


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "is not set"), ("", "is not set"), ("x" * (MIN_KEY_BYTES - 1), f"has {MIN_KEY_BYTES - 1} bytes")],
    ids=["none", "empty", "short"],
)
def test_a_missing_or_short_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None, says: str) -> None:
    monkeypatch.delenv(NAME)
    if value is not None:
        monkeypatch.setenv(NAME, value)
    with pytest.raises(JobError, match=f"privacy.pseudonyms.key_env: {NAME} {says}"):
        read_key(NAME)
    with pytest.raises(JobError, match="openssl rand -hex 32"):
        check_key(NAME)
