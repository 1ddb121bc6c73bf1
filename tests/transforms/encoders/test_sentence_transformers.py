"""The `st` family held against sentence-transformers' own `encode`, on tiny checkpoints in the true formats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.checkpoints import TEXTS, save_clip
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.registry import describe_encoder, family_of
from unisono.transforms.encoders.sentence import st as st

RATE = 16_000


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("st-clip")
    save_clip(path)
    return path


@pytest.fixture(scope="session")
def library(omni: Path, clip: Path) -> dict[Path, Any]:
    from sentence_transformers import SentenceTransformer

    return {path: SentenceTransformer(str(path), device="cpu") for path in (omni, clip)}


def picture(seed: int) -> Image.Image:
    """A few plain blocks, so that pictures differ after any resizing."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(20, 0).repeat(20, 1))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def sound(seed: int, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * (300 + 400 * seed) * (1 + time / 5) * time)).astype(np.float32)


def wav(seed: int, seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(seed, seconds), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def heard(wave: np.ndarray) -> dict[str, Any]:
    return {"array": wave, "sampling_rate": RATE}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    out: np.ndarray = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return out


def encode(path: Path, modality: str, raw: list[Any], **options: Any) -> np.ndarray:
    encoder = st.load(EncoderSpec(modality, f"st/{path}", tuple(sorted(options.items()))))
    return encoder.encode([encoder.prepare(r) for r in raw])


def check(ours: np.ndarray, expected: np.ndarray) -> None:
    assert cosine(ours, expected).min() >= 0.9999
    assert cosine(expected[:1], expected[1:]).max() < 0.999  # these inputs are told apart


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
    assert cosine(expected[:1], library[omni].encode_document(texts[:1]))[0] < 0.999  # the library opens the picture


@pytest.mark.parametrize("kind", ["omni", "clip"])
def test_images(kind: str, omni: Path, clip: Path, library: dict[Path, Any]) -> None:
    path = omni if kind == "omni" else clip
    expected = library[path].encode_document([picture(s) for s in range(4)])
    check(encode(path, "image", [png(s) for s in range(4)]), expected)


def test_audio(omni: Path, library: dict[Path, Any]) -> None:
    expected = library[omni].encode_document([heard(sound(s)) for s in range(3)])
    check(encode(omni, "audio", [wav(s) for s in range(3)]), expected)


def test_long_audio_is_the_mean_of_its_windows(omni: Path, library: dict[Path, Any]) -> None:
    clips = [sound(s, 2.5) for s in range(3)]
    starts = [0, 0.75, 1.5]
    windows = [heard(c[round(s * RATE) : round((s + 1) * RATE)]) for c in clips for s in starts]
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
        seen = {"text": made["text"], "image": picture(seed), "audio": heard(sound(seed))}
        raw.append({n: made[n] for n in names})
        reference.append({n: seen[n] for n in names})
    # one at a time: the reference owes nothing to how ours are grouped
    expected = np.concatenate([library[omni].encode_document([r]) for r in reference])
    check(encode(omni, "joint", raw), expected)
    check(encode(omni, "joint", raw[:1] + raw[3:4]), expected[[0, 3]])


def test_joint_with_several_pictures(omni: Path, library: dict[Path, Any]) -> None:
    expected = library[omni].encode_document([{"text": "red lamp", "image": [picture(1), picture(2)]}])
    ours = encode(omni, "joint", [{"text": "red lamp", "image": [png(1), png(2)]}])
    assert cosine(ours, expected)[0] >= 0.9999


@pytest.mark.parametrize("modality", ["text", "image", "audio", "joint"])
def test_queries_are_asked_with_the_query_prompt(modality: str, omni: Path, library: dict[Path, Any]) -> None:
    encoder = st.load(EncoderSpec(modality, f"st/{omni}"))
    tower = text_tower_of(encoder)
    assert tower is not None
    ours = tower.encode([tower.prepare(t) for t in TEXTS[:4]])
    check(ours, library[omni].encode_query(TEXTS[:4]))
    assert cosine(ours, library[omni].encode_document(TEXTS[:4])).max() < 0.9999


def test_told_before_loading(omni: Path, clip: Path) -> None:
    for path, dim in ((omni, 24), (clip, 20)):
        told = describe_encoder(EncoderSpec("image", f"st/{path}"))
        loaded = st.load(EncoderSpec("image", f"st/{path}"))
        assert told == (loaded.encoder_id, loaded.dim) == (loaded.encoder_id, dim)
    ids = {m: describe_encoder(EncoderSpec(m, f"st/{omni}")).encoder_id for m in ("text", "image", "audio", "joint")}
    assert len(set(ids.values())) == 4
    assert describe_encoder(EncoderSpec("text", f"st/{omni}", (("batch", 3),))).encoder_id == ids["text"]
    assert describe_encoder(EncoderSpec("text", f"st/{omni}", (("prompt", "query"),))).encoder_id != ids["text"]


def test_a_model_of_single_inputs_is_no_joint_encoder(clip: Path) -> None:
    with pytest.raises(JobError, match=r"encoders.joint.model.*does not take text \+ image in one input.*omni-modal"):
        st.load(EncoderSpec("joint", f"st/{clip}", (("parts", ("text", "image")),)))
    with pytest.raises(JobError, match=r"encoders.audio.model.*does not take audio"):
        st.load(EncoderSpec("audio", f"st/{clip}"))


def test_nothing_is_unpickled_and_no_code_is_run(clip: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(clip, tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(JobError, match=r"pytorch_model.bin but no safetensors"):
        describe_encoder(EncoderSpec("image", f"st/{tmp_path / 'a'}"))
    shutil.copytree(clip, tmp_path / "b")
    (tmp_path / "b" / "modules.json").write_text(json.dumps([{"idx": 0, "path": "", "type": "os.system"}]))
    with pytest.raises(JobError, match=r"os.system.*never run"):
        describe_encoder(EncoderSpec("image", f"st/{tmp_path / 'b'}"))


def test_bad_parts_are_input_errors(omni: Path) -> None:
    encoder = st.load(EncoderSpec("joint", f"st/{omni}"))
    with pytest.raises(InputError):
        encoder.prepare({"image": b"no picture"})
    lost = encoder.prepare({"text": "red", "image": b"no picture"}).lost
    assert [(part, why.reason) for part, why in lost] == [("image", Reason.NOT_AN_IMAGE)]


def test_the_prefix_is_not_the_hubs_organisation() -> None:
    assert family_of(EncoderSpec("text", "sentence-transformers/all-MiniLM-L6-v2")) == "transformers"
    assert family_of(EncoderSpec("joint", "st/google/embeddinggemma-2")) == "st"
    with pytest.raises(JobError, match=r"encoders.joint.model"):
        family_of(EncoderSpec("joint", "lite"))
