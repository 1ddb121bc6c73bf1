"""Pseudonyms: keyed hashes that replace user ids. The key is read from the environment and stored nowhere."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass

import pyarrow as pa

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.tables import one_chunk
from unisono.transforms.store.parquet import plain_type

MIN_KEY_BYTES = 32
_BYTES = 16  # of the 32 bytes of an HMAC: the chance that two of a billion users share a pseudonym is 1e-21
_FINGERPRINT_OF = b"\0unisono pseudonym key"


@dataclass(frozen=True)
class Pseudonyms:
    """The key that hides user ids, by its name and fingerprint; only these travel with the Beam graph.

    Attributes:
        key_env: name of the environment variable that holds the key on every machine that reads user ids.
        fingerprint: keyed hash of a constant, by which two keys are told apart.
    """

    key_env: str
    fingerprint: str

    def of(self, ids: pa.ChunkedArray | pa.Array) -> pa.Array:
        """Replaces each id by its pseudonym: the first 16 bytes of HMAC-SHA256(key, id in UTF-8), in hexadecimal.

        An integer is hashed as its decimal digits, whatever its width.

        Args:
            ids: strings or integers [n].

        Returns:
            string [n], null where the id is null.

        Raises:
            JobError: this machine does not have the key, or has another key.
        """
        key = read_key(self.key_env)
        if _fingerprint(key) != self.fingerprint:
            raise JobError(
                f"privacy.pseudonyms.key_env: {self.key_env} holds another key here than where the job was launched or "
                "the run was made; set the same key"
            )
        encoded = one_chunk(ids.cast(plain_type(ids.type))).dictionary_encode()
        distinct = encoded.dictionary.cast(pa.string()).to_pylist()
        # No library hashes a column with a key. The loop takes two or three microseconds for each distinct id.
        hashed = [hmac.digest(key, i.encode(), "sha256")[:_BYTES].hex() for i in distinct]
        return pa.array(hashed, pa.string()).take(encoded.indices)


def check_key(key_env: str) -> Pseudonyms:
    """Checks the key before any work starts.

    Args:
        key_env: name of the environment variable.

    Raises:
        JobError: the key is missing, or shorter than `MIN_KEY_BYTES`.
    """
    return Pseudonyms(key_env, _fingerprint(read_key(key_env)))


def read_key(key_env: str) -> bytes:
    """Reads the key from the environment of this process.

    Args:
        key_env: name of the environment variable.

    Raises:
        JobError: the key is missing, or shorter than `MIN_KEY_BYTES`.
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
