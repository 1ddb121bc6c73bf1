"""Pseudonyms: keyed hashes in place of user ids; the key is in the environment and nowhere else."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass

import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.store.parquet import plain_type

MIN_KEY_BYTES = 32
_BYTES = 16  # of the 32 of an HMAC: two of a billion users share one with a chance of 1e-21
_FINGERPRINT_OF = b"\0unisono pseudonym key"


@dataclass(frozen=True)
class Pseudonyms:
    """Which key replaces user ids. It travels with the graph; the key itself does not.

    Attributes:
        key_env: the environment variable that holds the key, on every machine that reads user ids.
        fingerprint: keyed hash of a constant: another key has another.
    """

    key_env: str
    fingerprint: str

    def of(self, ids: pa.ChunkedArray | pa.Array) -> pa.Array:
        """Gives each id its pseudonym, string [n], null where the id is: HMAC-SHA256(key, id in UTF-8)[:16], in hex.

        An integer is hashed as its decimal digits, whatever its width.

        Raises:
            JobError: this machine does not have the key, or has another.
        """
        key = read_key(self.key_env)
        if _fingerprint(key) != self.fingerprint:
            raise JobError(
                f"privacy.pseudonyms.key_env: {self.key_env} holds another key here than where the job was launched or "
                "the run was made; set the same key"
            )
        encoded = one_chunk(ids.cast(plain_type(ids.type))).dictionary_encode()
        distinct = encoded.dictionary.cast(pa.string()).to_pylist()
        # A loop: no library hashes a column with a key. It runs over distinct ids, at two or three microseconds each.
        hashed = [hmac.digest(key, i.encode(), "sha256")[:_BYTES].hex() for i in distinct]
        return pa.array(hashed, pa.string()).take(encoded.indices)


def check_key(key_env: str) -> Pseudonyms:
    """Looks for the key before any work.

    Raises:
        JobError: it is missing or short.
    """
    return Pseudonyms(key_env, _fingerprint(read_key(key_env)))


def read_key(key_env: str) -> bytes:
    """Takes the key from this process's environment.

    Raises:
        JobError: it is missing or short.
    """
    key = os.environ.get(key_env, "").encode("utf-8", "surrogateescape")
    if len(key) < MIN_KEY_BYTES:
        found = f"has {len(key)} bytes" if key else "is not set"
        raise JobError(
            f"privacy.pseudonyms.key_env: {key_env} {found} in the environment of this process; it must hold a secret "
            f"of {MIN_KEY_BYTES} bytes or more (openssl rand -hex 32), on every machine that reads the log"
        )
    return key


def _fingerprint(key: bytes) -> str:
    return hmac.digest(key, _FINGERPRINT_OF, "sha256")[:8].hex()
