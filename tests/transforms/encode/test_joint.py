"""The modality `joint` in the stage: an item's text, image and audio in one input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from PIL import Image

from unisono.transforms.base.errors import Reason
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.reuse import add_previous
from unisono.transforms.encode.shard import encode_table, join_parts
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.sentence import st
from unisono.transforms.media.fetch import MediaSource

PARTS = ("text", "image", "audio")


@pytest.fixture(scope="module")
def encoder(omni: Path) -> Encoder:
    return st.load(EncoderSpec("joint", f"st/{omni}", (("parts", PARTS),)))


@pytest.fixture(scope="module")
def library(omni: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(omni), device="cpu")


@pytest.fixture
def source(tmp_path: Path) -> MediaSource:
    for seed in (1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
        soundfile.write(tmp_path / f"{seed}.wav", sound(seed), 16_000, subtype="FLOAT")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return MediaSource(str(tmp_path))


def picture(seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, 0).repeat(20, 1))


def sound(seed: int) -> np.ndarray:
    return (0.5 * np.sin(np.arange(8000) * 0.05 * seed)).astype(np.float32)


def as_audio(seed: int) -> dict[str, Any]:
    """Wraps a sound as sentence-transformers takes it."""
    return {"array": sound(seed), "sampling_rate": 16_000}


def table(**rows: tuple[str | None, Any, str | None]) -> pa.Table:
    text, image, audio = zip(*rows.values(), strict=True)
    kind = pa.list_(pa.string()) if any(isinstance(v, list) for v in image) else pa.string()
    columns = [list(rows), pa.array(text, pa.string()), pa.array(image, kind), pa.array(audio, pa.string())]
    return pa.table(columns, names=["item_id", *PARTS])


ROWS = {
    "all": ("red lamp", "1.png", "1.wav"),
    "text": ("green chair", None, None),
    "media": (None, "2.png", "2.wav"),
    "blank": ("  ", "1.png", None),
    "none": (None, None, None),
    "empty": ("", None, None),
    "broken": ("red chair", "broken.png", "1.wav"),
    "lost": ("red drum", "1.png", "gone.wav"),
    "useless": (None, "broken.png", "gone.wav"),
}
SAMPLES = {
    "all": {"text": "red lamp", "image": picture(1), "audio": as_audio(1)},
    "text": "green chair",
    "media": {"image": picture(2), "audio": as_audio(2)},
    "blank": picture(1),
    "broken": {"text": "red chair", "audio": as_audio(1)},
    "lost": {"text": "red drum", "image": picture(1)},
}


def test_missing_parts_are_left_out(encoder: Encoder, library: Any, source: MediaSource, pool: Any) -> None:
    raw = table(**ROWS)
    result = encode_table(join_parts(raw, PARTS), "joint", MicroBatcher(encoder), source, pool)
    vectors, present = from_vector_column(result.table["joint_embedding"])
    got = {name: vectors[i] for i, name in enumerate(ROWS) if present[i]}
    assert got.keys() == SAMPLES.keys()
    for name, sample in SAMPLES.items():
        expected = library.encode_document([sample])[0]
        assert got[name] @ expected / np.linalg.norm(expected) >= 0.9999, name
    # The raw columns stay for the encoders of the single modalities.
    assert result.table.select(["text", "image", "audio"]) == raw.select(["text", "image", "audio"])
    told = sorted((d.item_id, d.modality, d.reason, d.detail.partition(":")[0], d.uri) for d in result.letters)
    assert told == [
        ("broken", "joint", Reason.NOT_AN_IMAGE, "image", "broken.png"),
        ("lost", "joint", Reason.NOT_FOUND, "audio", "gone.wav"),
        ("useless", "joint", Reason.NOT_AN_IMAGE, "image", "broken.png"),
        ("useless", "joint", Reason.NOT_FOUND, "audio", "gone.wav"),
    ]
    # An item that lost a part has no hash, so the next run tries it again.
    hashes = dict(zip(ROWS, result.table["joint_hash"].to_pylist(), strict=True))
    assert {n for n, h in hashes.items() if h} == {"all", "text", "media", "blank"}


def test_lists_of_pictures_go_in_together(encoder: Encoder, library: Any, source: MediaSource, pool: Any) -> None:
    raw = table(a=("red lamp", ["1.png", "2.png"], None), b=("red lamp", ["1.png"], None))
    result = encode_table(join_parts(raw, PARTS), "joint", MicroBatcher(encoder), source, pool)
    vectors, _ = from_vector_column(result.table["joint_embedding"])
    samples: list[Any] = [{"text": "red lamp", "image": [picture(1), picture(2)]}]
    samples.append({"text": "red lamp", "image": picture(1)})
    for vector, sample in zip(vectors, samples, strict=True):
        assert vector @ library.encode_document([sample])[0] >= 0.9999


def test_unchanged_items_are_reused(encoder: Encoder, source: MediaSource, pool: Any) -> None:
    raw = table(**{n: ROWS[n] for n in ("all", "media", "broken")})
    batcher = MicroBatcher(encoder)
    first = encode_table(join_parts(raw, PARTS), "joint", batcher, source, pool)
    changed = raw.set_column(1, "text", pa.array(["red lamp", "a new text", "red chair"]))
    again = add_previous(changed, first.table, {"joint": encoder.encoder_id})
    second = encode_table(join_parts(again, PARTS), "joint", batcher, source, pool)
    assert (first.encoded, second.encoded, second.reused) == (3, 2, 1)
    assert second.table["joint_embedding"][0] == first.table["joint_embedding"][0]
    assert second.table["joint_embedding"][1] != first.table["joint_embedding"][1]
