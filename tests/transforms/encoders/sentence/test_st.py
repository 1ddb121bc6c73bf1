"""The family `st`, compared with sentence-transformers' own `encode`, on tiny checkpoints in the true formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import TEXTS
from tests.media_files import image_file, sound_file
from tests.transforms.encoders.cosines import cosines
from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.registry import describe_encoder
from unisono.transforms.encoders.sentence import st

RATE = 16_000


@pytest.fixture(scope="session")
def library(omni: Path, clip: Path) -> dict[Path, Any]:
    from sentence_transformers import SentenceTransformer

    return {path: SentenceTransformer(str(path), device="cpu") for path in (omni, clip)}


def picture(seed: int) -> Image.Image:
    """Makes a picture of a few plain blocks, so that two pictures differ after any resizing."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, 0).repeat(20, 1))


def png(seed: int) -> bytes:
    return image_file(picture(seed))


def sound(seed: int, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * (300 + 400 * seed) * (1 + time / 5) * time)).astype(np.float32)


def wav(seed: int, seconds: float = 1.0) -> bytes:
    return sound_file(sound(seed, seconds), RATE, subtype="FLOAT")


def as_audio(wave: np.ndarray) -> dict[str, Any]:
    """Wraps a waveform as sentence-transformers takes it."""
    return {"array": wave, "sampling_rate": RATE}


def encode(path: Path, modality: str, raw: list[Any], **options: Any) -> np.ndarray:
    encoder = st.load(EncoderSpec(modality, f"st/{path}", tuple(sorted(options.items()))))
    return encoder.encode([encoder.prepare(r) for r in raw])


def check(ours: np.ndarray, expected: np.ndarray) -> None:
    assert cosines(ours, expected).min() >= 0.9999
    assert cosines(expected[:1], expected[1:]).max() < 0.999  # the checkpoint tells the inputs apart


def test_text(omni: Path, clip: Path, library: dict[Path, Any]) -> None:
    for path in (omni, clip):
        texts = [t.strip() for t in TEXTS] if path == omni else TEXTS[:6]
        check(encode(path, "text", texts), library[path].encode_document(texts))


def test_text_that_names_a_file_is_read_as_text(
    omni: Path, tmp_path: Path, library: dict[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    monkeypatch.chdir(tmp_path)
    texts = ["a.png", "https://example.org/b.jpg", "red lamp"]
    expected = library[omni].encode_document([{"text": t} for t in texts])
    check(encode(omni, "text", texts), expected)
    # The library by itself would open the picture.
    assert cosines(expected[:1], library[omni].encode_document(texts[:1]))[0] < 0.999


@pytest.mark.parametrize("kind", ["omni", "clip"])
def test_images(kind: str, omni: Path, clip: Path, library: dict[Path, Any]) -> None:
    path = omni if kind == "omni" else clip
    expected = library[path].encode_document([picture(s) for s in range(4)])
    check(encode(path, "image", [png(s) for s in range(4)]), expected)


def test_audio(omni: Path, library: dict[Path, Any]) -> None:
    expected = library[omni].encode_document([as_audio(sound(s)) for s in range(3)])
    check(encode(omni, "audio", [wav(s) for s in range(3)]), expected)


def test_long_audio_is_the_mean_of_its_windows(omni: Path, library: dict[Path, Any]) -> None:
    clips = [sound(s, 2.5) for s in range(3)]
    starts = [0, 0.75, 1.5]
    windows = [as_audio(c[round(s * RATE) : round((s + 1) * RATE)]) for c in clips for s in starts]
    vectors = library[omni].encode_document(windows).reshape(3, 3, -1).astype(np.float64)
    expected = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).mean(axis=1)
    ours = encode(omni, "audio", [wav(s, 2.5) for s in range(3)], audio_seconds=1.0)
    check(ours, expected)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_joint_samples_of_any_parts(omni: Path, library: dict[Path, Any]) -> None:
    parts = [("text", "image", "audio"), ("text",), ("image", "audio"), ("text", "audio"), ("audio",)]
    parts.append(("text", "image"))
    raw, reference = [], []
    for seed, names in enumerate(parts):
        made = {"text": f"{TEXTS[seed % 3]} {seed}", "image": png(seed), "audio": wav(seed)}
        seen = {"text": made["text"], "image": picture(seed), "audio": as_audio(sound(seed))}
        raw.append({n: made[n] for n in names})
        reference.append({n: seen[n] for n in names})
    # One at a time, so that the reference does not depend on any grouping.
    expected = np.concatenate([library[omni].encode_document([r]) for r in reference])
    check(encode(omni, "joint", raw), expected)
    check(encode(omni, "joint", raw[:1] + raw[3:4]), expected[[0, 3]])


def test_joint_with_several_pictures(omni: Path, library: dict[Path, Any]) -> None:
    expected = library[omni].encode_document([{"text": "red lamp", "image": [picture(1), picture(2)]}])
    ours = encode(omni, "joint", [{"text": "red lamp", "image": [png(1), png(2)]}])
    assert cosines(ours, expected)[0] >= 0.9999


@pytest.mark.parametrize("modality", ["text", "image", "audio", "joint"])
def test_queries_are_asked_with_the_query_prompt(modality: str, omni: Path, library: dict[Path, Any]) -> None:
    encoder = st.load(EncoderSpec(modality, f"st/{omni}"))
    tower = text_tower_of(encoder)
    assert tower is not None
    ours = tower.encode([tower.prepare(t) for t in TEXTS[:4]])
    check(ours, library[omni].encode_query(TEXTS[:4]))
    assert cosines(ours, library[omni].encode_document(TEXTS[:4])).max() < 0.9999


def test_id_and_dimension_are_known_before_loading(omni: Path, clip: Path) -> None:
    for path, dim in ((omni, 24), (clip, 20)):
        told = describe_encoder(EncoderSpec("image", f"st/{path}"))
        loaded = st.load(EncoderSpec("image", f"st/{path}"))
        assert told == (loaded.encoder_id, loaded.dim) == (loaded.encoder_id, dim)
    ids = {m: describe_encoder(EncoderSpec(m, f"st/{omni}")).encoder_id for m in ("text", "image", "audio", "joint")}
    assert len(set(ids.values())) == 4
    assert describe_encoder(EncoderSpec("text", f"st/{omni}", (("batch", 3),))).encoder_id == ids["text"]
    assert describe_encoder(EncoderSpec("text", f"st/{omni}", (("prompt", "query"),))).encoder_id != ids["text"]


def test_bad_parts_are_input_errors(omni: Path) -> None:
    encoder = st.load(EncoderSpec("joint", f"st/{omni}"))
    with pytest.raises(InputError):
        encoder.prepare({"image": b"no picture"})
    lost = encoder.prepare({"text": "red", "image": b"no picture"}).lost
    assert [(part, why.reason) for part, why in lost] == [("image", Reason.NOT_AN_IMAGE)]
