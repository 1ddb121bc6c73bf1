"""Lite encoders: against librosa and plain loops; what an encoder must be; how much they tell."""

from __future__ import annotations

import colorsys
import hashlib
import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from tests.paths import ROOT, STAMPS
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.lite import audio as lite_audio
from unisono.transforms.encoders.lite import image as lite_image
from unisono.transforms.encoders.lite import text as lite_text
from unisono.transforms.encoders.registry import describe_encoder, get_encoder
from unisono.transforms.media.limits import MediaLimits

WORDS = "red green blue chair table lamp soft loud small song bell drum frog rain kids wood".split()  # noqa: SIM905


def lite(modality: str, **limits: Any) -> Any:
    return get_encoder(EncoderSpec(modality, "lite", limits=MediaLimits(**limits)))


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def wav(samples: np.ndarray, rate: int = 22_050) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype="FLOAT")
    return stream.getvalue()


def chirp(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    """A sweep with overtones, noise and a pause: float32 [samples] at 22,050 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 22_050)) / 22_050
    phase = 2 * np.pi * (200 * t + 300 * t**2)
    wave = 0.4 * np.sin(phase) + 0.2 * np.sin(3 * phase) + 0.02 * rng.standard_normal(len(t))
    wave[(t > 0.6) & (t < 0.8)] = 0
    return wave.astype(np.float32)


def examples(modality: str, n: int = 7) -> list[Any]:
    rng = np.random.default_rng(3)
    if modality == "text":
        return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(n - 1)] + ["木头椅子"]
    if modality == "image":
        return [png(rng.integers(0, 256, (20 + 9 * i, 50, 3), np.uint8)) for i in range(n)]
    return [wav(chirp(0.3 + 0.1 * i, i)) for i in range(n)]


# --- what every encoder must be ----------------------------------------------------------------------------


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
        "import hashlib; from tests.transforms.encoders import test_lite as t\n"
        "for m in ('text', 'image', 'audio'):\n"
        "    e = t.lite(m)\n"
        "    print(hashlib.sha256(e.encode([e.prepare(x) for x in t.examples(m)])).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    mine = []
    for modality in ("text", "image", "audio"):
        encoder = lite(modality)
        rows = encoder.encode([encoder.prepare(item) for item in examples(modality)])
        mine.append(hashlib.sha256(rows.tobytes()).hexdigest())
    assert done.stdout.split() == mine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            EncoderSpec("image", "lite/large"), r"encoders\.image\.model: got 'lite/large'", id="variant"
        ),
        pytest.param(
            EncoderSpec("text", "lite", (("dim", 64),)), r"encoders\.text\.dim: .*no options", id="option"
        ),
    ],
)
def test_what_lite_does_not_have_is_one_line(spec: EncoderSpec, message: str) -> None:
    with pytest.raises(JobError, match=message):
        describe_encoder(spec)


def test_limits_and_bad_input_reach_the_caller() -> None:
    cases = [
        (lite("text"), "  \n", Reason.EMPTY_TEXT),
        (lite("image"), b"", Reason.EMPTY_FILE),
        (lite("image", max_image_pixels=50), png(np.zeros((8, 8, 3), np.uint8)), Reason.TOO_MANY_PIXELS),
        (lite("audio"), b"no sound", Reason.NOT_AUDIO),
        (lite("audio", max_audio_seconds=0.5), wav(chirp(1.0)), Reason.TOO_LONG),
    ]
    for encoder, raw, reason in cases:
        with pytest.raises(InputError) as caught:
            encoder.prepare(raw)
        assert caught.value.reason is reason


# --- text --------------------------------------------------------------------------------------------------


def test_text_keeps_the_cosines_of_its_features() -> None:
    encoder = lite("text")
    texts = [encoder.prepare(t) for t in examples("text", 60)]
    # By hand: sublinear counts of words, word pairs and padded character n-grams, each view with unit norm.
    views: tuple[dict[str, dict[int, int]], ...] = ({}, {})
    for i, text in enumerate(texts):
        words = text.split()
        grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
        chars = [f" {w} "[j : j + n] for w in words for n in (2, 3, 4) for j in range(max(1, len(w) + 3 - n))]
        for view, terms in zip(views, (grams, chars), strict=True):
            for term in terms:
                view.setdefault(term, {}).setdefault(i, 0)
                view[term][i] += 1
    kernel = np.zeros((len(texts), len(texts)))
    for view in views:
        rows = np.zeros((len(texts), len(view)))
        for column, counts in enumerate(view.values()):
            for i, count in counts.items():
                rows[i, column] = 1 + np.log(count)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        kernel += rows @ rows.T / 2
    embeddings = encoder.encode(texts).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    error = (embeddings @ embeddings.T - kernel)[np.triu_indices(len(texts), 1)]
    # A random projection to 256 places is off by about 1/√256 on the average.
    assert np.sqrt((error**2).mean()) < 0.075
    assert abs(error.mean()) < 0.02


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        pytest.param("wooden chairs", "Wooden chair", "loud drum", id="english"),
        pytest.param("Grüne Holzstühle", "grüner Holzstuhl", "laute Trommel", id="german"),
        pytest.param("一把木头椅子", "红色的木头椅子", "响亮的鼓", id="chinese"),
        pytest.param("ＣＡＦÉ", "cafe\u0301", "tea", id="forms"),
    ],
)
def test_text_of_several_languages(text: str, near: str, far: str) -> None:
    encoder = lite("text")
    a, b, c = encoder.encode([encoder.prepare(t) for t in (text, near, far)])
    assert a @ b > a @ c + 0.2


@pytest.mark.parametrize(
    "text", ["!?", "猫", "👍", "a", "x" * 100_000], ids=["signs", "one", "emoji", "letter", "long"]
)
def test_odd_text_has_a_unit_embedding(text: str) -> None:
    encoder = lite("text")
    row = encoder.encode([encoder.prepare(text)])
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


# --- images ------------------------------------------------------------------------------------------------


def test_colour_histograms_count_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    hsv = np.asarray(Image.fromarray(rgb).convert("HSV"))
    joint = np.zeros((8, 3, 3))
    saturation, hue = np.zeros((4, 8)), np.zeros((4, 8))
    for y in range(16):
        for x in range(16):
            h, s, v = (int(c) for c in hsv[y, x])
            exact = np.array(colorsys.rgb_to_hsv(*(rgb[y, x] / 255.0))) * 255
            assert np.abs(exact[1:] - (s, v)).max() <= 1  # what the bytes mean
            joint[h * 8 // 256, s * 3 // 256, v * 3 // 256] += 1
            quarter = (y >= 8) * 2 + (x >= 8)
            hue[quarter, h // 32] += s / 255
            saturation[quarter, s // 32] += 1
    np.testing.assert_array_equal(lite_image.colour_histogram(hsv), joint.ravel())
    layout = lite_image.layout_histogram(hsv)
    np.testing.assert_allclose(layout[:32], hue.ravel(), atol=1e-9)
    np.testing.assert_array_equal(layout[32:64], saturation.ravel())
    assert layout[64:].sum() == 256


def test_texture_tells_patterns_apart() -> None:
    encoder = lite("image")
    grey = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    # Eight neighbours at distance 1, the diagonal ones interpolated: counted by hand on the inside of one quarter.
    padded = grey.astype(np.float64)
    angles = 2 * np.pi * np.arange(8) / 8
    counts = np.zeros(10)
    for y in range(1, 31):
        for x in range(1, 31):
            bits = []
            for angle in angles:
                row, column = y - np.sin(angle).round(5), x + np.cos(angle).round(5)
                r0, c0 = int(np.floor(row)), int(np.floor(column))
                dr, dc = row - r0, column - c0
                r1, c1 = int(np.ceil(row)), int(np.ceil(column))
                top = (1 - dc) * padded[r0, c0] + dc * padded[r0, c1]
                bottom = (1 - dc) * padded[r1, c0] + dc * padded[r1, c1]
                bits.append(int((1 - dr) * top + dr * bottom >= padded[y, x]))
            changes = sum(bits[i] != bits[i - 1] for i in range(8))
            counts[sum(bits) if changes <= 2 else 9] += 1
    quarter = encoder.texture_histogram(grey)[:10]
    # The edge of the quarter adds 124 pixels that were not counted.
    assert quarter.sum() == 32 * 32
    assert (quarter >= counts - 1).all()
    assert np.abs(quarter - counts).sum() <= 124 + 2


def test_gradients_follow_edges() -> None:
    encoder = lite("image")
    y, x = np.mgrid[0:64, 0:64]
    for angle in range(8):
        theta = np.pi * (angle + 0.5) / 8  # the middle of scikit-image's orientation bin
        wave = 127 + 120 * np.sin((x * np.cos(theta) + y * np.sin(theta)) / 2.0)
        cells = encoder.gradient_histogram(wave.astype(np.uint8)).reshape(16, 8)
        assert (cells.argmax(axis=1) == angle).all()
    plain = encoder.gradient_histogram(np.full((64, 64), 90, np.uint8))
    assert (plain == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2), (64, 64), (700, 300)])
def test_any_size_and_one_colour(shape: tuple[int, int]) -> None:
    encoder = lite("image")
    rows = encoder.encode(
        [encoder.prepare(png(np.full((*shape, 3), level, np.uint8))) for level in (0, 128, 255)]
    )
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert rows[0] @ rows[2] < 0.999  # black is not white


def test_groups_of_an_image_weigh_the_same() -> None:
    encoder = lite("image")
    row = encoder.prepare(examples("image")[3]).astype(np.float64)
    ends = np.cumsum([72, 96, 112, 128])
    assert ends[-1] == encoder.dim
    norms = [np.linalg.norm(part) for part in np.split(row, ends[:-1])]
    np.testing.assert_allclose(norms, 0.5, atol=1e-6)


# --- audio -------------------------------------------------------------------------------------------------


def test_spectra_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    encoder = lite("audio")
    samples = chirp()
    samples /= np.abs(samples).max()
    mel, chroma = encoder.spectra(samples)
    power = librosa.feature.melspectrogram(y=samples, sr=22_050, n_mels=64)
    expected = librosa.power_to_db(power, top_db=80.0)
    np.testing.assert_allclose(mel, expected, atol=0.02)
    np.testing.assert_allclose(
        chroma, librosa.feature.chroma_stft(y=samples, sr=22_050, tuning=0.0, n_chroma=12), atol=1e-3
    )
    np.testing.assert_allclose(
        lite_audio.chroma_filters(), librosa.filters.chroma(sr=22_050, n_fft=2048, tuning=0.0), atol=1e-6
    )
    # The statistics of one group, from librosa's own features: MFCC and their changes in frames that are no pause.
    mfcc = librosa.feature.mfcc(S=expected, n_mfcc=20)
    active = expected.max(axis=0) >= expected.max() - lite_audio.ACTIVE_DB
    start = 0
    groups = {}
    row = encoder.describe(samples)
    for name, width, weight in lite_audio._GROUPS:
        groups[name] = row[start : start + width] / np.sqrt(weight)
        start += width
    for name, feature in (
        ("mel_std", expected),
        ("mfcc_std", mfcc),
        ("mfcc_delta", librosa.feature.delta(mfcc, mode="nearest")),
        ("mfcc_delta2", librosa.feature.delta(mfcc, order=2, mode="nearest")),
    ):
        deviation = feature[:, active].std(axis=1)
        np.testing.assert_allclose(groups[name], deviation / np.linalg.norm(deviation), atol=1e-3)


def test_audio_is_blind_to_gain_and_sees_pitch() -> None:
    encoder = lite("audio")
    quiet, loud = (encoder.prepare(wav(chirp() * gain)) for gain in (0.01, 0.9))
    np.testing.assert_allclose(quiet, loud, atol=2e-3)
    t = np.arange(22_050) / 22_050
    low, high = (encoder.prepare(wav(np.sin(2 * np.pi * hz * t))) for hz in (220.0, 1760.0))
    assert low @ high < 0.9 * (low @ low)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param(np.zeros(22_050), id="silence"),
        pytest.param(np.zeros(1), id="one-zero"),
        pytest.param(np.ones(1), id="one-sample"),
        pytest.param(np.full(5_000, 0.5), id="constant"),
        pytest.param(chirp(0.05), id="short"),
        pytest.param(chirp(0.5) * 1e30, id="huge"),
        pytest.param(chirp(0.5) * 1e-9, id="faint"),
        pytest.param(chirp(40.0), id="past-the-listening-time"),
    ],
)
def test_odd_sounds_are_finite(samples: np.ndarray) -> None:
    encoder = lite("audio")
    row = encoder.prepare(wav(samples))
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) < 3


# --- how much they tell ------------------------------------------------------------------------------------


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
    """Chance is the share of pairs of one category; the floor is well under what was measured (see the report)."""
    encoder = lite(modality)
    rows, categories = [], []
    table = pq.read_table(STAMPS / "catalog.parquet", columns=[column, "category"])
    for value, category in zip(
        table[column].to_pylist()[::2], table["category"].to_pylist()[::2], strict=True
    ):
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


def test_projection_keeps_norms() -> None:
    matrix = lite_text.projection(5)
    assert matrix.shape == (2**18, 256)
    rows = matrix[:2000].toarray()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-12)
    assert ((rows != 0).sum(axis=1) == 8).all()
    # Places and signs are even: 2,000 rows put about 62.5 entries on each place, half of them positive.
    assert np.abs((rows != 0).sum(axis=0) - 62.5).max() < 5 * np.sqrt(62.5)
    assert abs(np.sign(rows).sum()) < 5 * np.sqrt(16_000)
