"""The points that were scored, as lines of a file in the store, so that a later call goes on from there."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from unisono.pipelines.job.job import Job
from unisono.pipelines.tune.cuts import Cut
from unisono.pipelines.tune.settings import KEYS, Settings, name_of
from unisono.transforms.base import files
from unisono.transforms.base.files import is_remote, join
from unisono.transforms.base.tables import hash_ids
from unisono.transforms.store.runs import Store

_FORMAT = 1  # counts up whenever a point of an earlier version would be scored differently
Values = tuple[np.ndarray, ...]  # the NDCG of each cut's users, float32 [users]


def fingerprint(job: Job, events: pa.Table, hidden: pa.Array | None, cuts: Sequence[Cut]) -> str:
    """Names everything that the score of a point depends on, besides the settings that are tried.

    Args:
        job: the job.
        events: the events. Their order does not count.
        hidden: ids of the items that may not be recommended.
        cuts: the cuts.
    """
    parts = [hash_ids(events["user_id"]), hash_ids(events["item_id"])]
    parts += [np.asarray(events["time"].cast(pa.int64()).to_numpy()).view(np.uint64)]
    parts += [np.asarray(events["weight"].to_numpy(), np.float64).view(np.uint64)]
    mixed = np.zeros(events.num_rows, np.uint64)
    for part in parts:
        mixed = hash_ids(pa.array(((mixed ^ part) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)))
    tried = {key.split(".")[1] for key in KEYS}
    fixed = {
        k: v for s in (job.ranks.factor_spec, job.ranks, job.profiles) for k, v in asdict(s).items() if k not in tried
    }
    about = {
        "format": [_FORMAT, importlib.metadata.version("unisono")],
        "embeddings": sorted(r.sha256 for r in job.store_at.published().part("embeddings")),
        "modalities": sorted(job.modalities),
        "sample": job.space.sample,
        "fixed": fixed,
        "hidden": None if hidden is None else np.sort(hash_ids(hidden)).tolist(),
        "cuts": [[cut.name, len(cut.users), len(cut.relevant[0])] for cut in cuts],
    }
    text = json.dumps(about, sort_keys=True, default=str).encode()
    return hashlib.sha256(text + np.sort(mixed).tobytes()).hexdigest()[:16]


@dataclass
class Journal:
    """A file of scored points, one JSON object a line. It holds no id of a user or an item.

    Attributes:
        path: the file, local or in an object store.
        points: the NDCG of each cut's users by `name_of` the settings; None where they could not be scored.
        earlier: how many of the points an earlier call scored.
    """

    path: str
    points: dict[str, Values | None] = field(default_factory=dict)
    earlier: int = 0
    _text: bytes = b""

    @classmethod
    def open(cls, store: Store, name: str, cuts: Sequence[Cut]) -> Journal:
        """Reads the points of earlier calls.

        Args:
            store: the store.
            name: what `fingerprint` returned.
            cuts: the cuts.
        """
        journal = cls(join(store.root, "tune", f"{name}.jsonl"))
        try:
            text = files.read_bytes(journal.path)
        except FileNotFoundError:
            return journal
        whole = text[: text.rfind(b"\n") + 1]  # a call that was killed may have left half a line
        for line in whole.splitlines():
            point = json.loads(line)
            values = point["ndcg_of_users"]
            journal.points[name_of(point["settings"])] = None if values is None else _unpack(values, cuts)
        journal._text, journal.earlier = whole, len(journal.points)
        if whole != text:
            files.write_bytes(journal.path, whole)
        return journal

    def add(self, settings: Settings, values: Values | None, seconds: float) -> None:
        """Writes down a point. It is on disk when this returns."""
        means = None if values is None else [round(float(v.mean()), 6) for v in values]
        packed = None if values is None else [_pack(v) for v in values]
        point = {"settings": settings, "ndcg": means, "seconds": round(seconds, 2), "ndcg_of_users": packed}
        line = json.dumps(point, sort_keys=True).encode() + b"\n"
        self.points[name_of(settings)] = values
        self._text += line
        if is_remote(self.path):  # an object cannot grow
            files.write_bytes(self.path, self._text)
            return
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "ab") as f:
            f.write(line)
            f.flush()
            os.fsync(f.fileno())


def _pack(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.astype("<f4").tobytes())).decode()


def _unpack(packed: Sequence[str], cuts: Sequence[Cut]) -> Values:
    values = tuple(np.frombuffer(zlib.decompress(base64.b64decode(p)), "<f4") for p in packed)
    assert [len(v) for v in values] == [len(cut.users) for cut in cuts]  # the fingerprint names their sizes
    return values
