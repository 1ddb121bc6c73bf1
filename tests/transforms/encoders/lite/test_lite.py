"""What holds for the lite encoder of every modality, and how well each tells real items apart."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.media_files import image_file
from tests.paths import ROOT, STAMPS
from tests.transforms.encoders.lite.examples import chirp, examples, lite, wav
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.registry import describe_encoder


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_a_batch_is_its_rows_bit_for_bit(modality: str) -> None:
    encoder: Encoder = lite(modality)
    raw = examples(modality)
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(encoder.prepare, raw))
    together = encoder.encode(prepared)
    assert together.dtype == np.float32
    assert together.shape == (len(raw), encoder.dim)
    assert np.isfinite(together).all()
    alone = np.concatenate([encoder.encode([encoder.prepare(item)]) for item in raw])
    assert together.tobytes() == alone.tobytes()
    assert encoder.encode(prepared[::-1]).tobytes() == together[::-1].tobytes()
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert describe_encoder(EncoderSpec(modality, "lite")) == (encoder.encoder_id, encoder.dim)
    assert all(encoder.cost(p) <= encoder.batch_cost for p in prepared)


def test_another_process_gets_the_same_bits() -> None:
    code = (
        "import hashlib; from tests.transforms.encoders.lite import examples as t\n"
        "for m in ('text', 'image', 'audio'):\n"
        "    e = t.lite(m)\n"
        "    print(hashlib.sha256(e.encode([e.prepare(x) for x in t.examples(m)])).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    mine = []
    for modality in ("text", "image", "audio"):
        encoder = lite(modality)
        rows = encoder.encode([encoder.prepare(item) for item in examples(modality)])
        mine.append(hashlib.sha256(rows.tobytes()).hexdigest())
    assert done.stdout.split() == mine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(EncoderSpec("image", "lite/large"), r"encoders\.image\.model: got 'lite/large'", id="variant"),
        pytest.param(EncoderSpec("text", "lite", (("dim", 64),)), r"encoders\.text\.dim: .*no options", id="option"),
    ],
)
def test_a_variant_or_an_option_is_refused_in_one_line(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(JobError, match=message):
        describe_encoder(spec)


def test_limits_and_bad_input_reach_the_caller() -> None:
    cases = [
        (lite("text"), "  \n", Reason.EMPTY_TEXT),
        (lite("image"), b"", Reason.EMPTY_FILE),
        (lite("image", max_image_pixels=50), image_file(np.zeros((8, 8, 3), np.uint8)), Reason.TOO_MANY_PIXELS),
        (lite("audio"), b"no sound", Reason.NOT_AUDIO),
        (lite("audio", max_audio_seconds=0.5), wav(chirp(1.0)), Reason.TOO_LONG),
    ]
    for encoder, raw, reason in cases:
        with pytest.raises(InputError) as caught:
            encoder.prepare(raw)
        assert caught.value.reason is reason


@pytest.mark.skipif(not STAMPS.is_dir(), reason="the stamps are not here")
@pytest.mark.parametrize(
    ("modality", "column", "times_chance"),
    [
        ("text", "title", 3.0),
        ("text", "title_zh", 2.0),
        ("image", "image_uri", 3.0),
        ("audio", "audio_uri", 2.5),
    ],
)
def test_nearest_stamps_share_a_category(modality: str, column: str, times_chance: float) -> None:
    """The bound is a multiple of chance, which is the share of pairs in one category. It is well below the result."""
    encoder = lite(modality)
    rows, categories = [], []
    table = pq.read_table(STAMPS / "catalog.parquet", columns=[column, "category"])
    for value, category in zip(table[column].to_pylist()[::2], table["category"].to_pylist()[::2], strict=True):
        if not value or value.endswith(".svg"):
            continue
        rows.append(encoder.prepare(value if modality == "text" else (STAMPS / value).read_bytes()))
        categories.append(category)
    embeddings = encoder.encode(rows).astype(np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    labels = np.array(categories)
    agreement = (labels[similarity.argmax(axis=1)] == labels).mean()
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    assert agreement > times_chance * (shares**2).sum()
