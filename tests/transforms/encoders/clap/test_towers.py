"""CLAP's embeddings, compared with those of transformers' own model on a tiny checkpoint in the true format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from tests.checkpoints import TEXTS
from tests.media_files import sound_file
from tests.transforms.encoders.clap.reference import KINDS, RATE, reference, reference_embeddings, wave
from tests.transforms.encoders.cosines import cosines
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.clap import towers as clap
from unisono.transforms.encoders.registry import describe_encoder


def to_file(samples: np.ndarray, rate: int, form: str = "WAV") -> bytes:
    return sound_file(samples, rate, form, {"WAV": "FLOAT", "FLAC": "PCM_24"}.get(form))


def encode(spec: EncoderSpec, files: list[bytes]) -> np.ndarray:
    encoder = clap.load(spec)
    return encoder.encode([encoder.prepare(f) for f in files])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.2, 0.7, 1.0], ids=["short", "shorter", "the window"])
def test_audio_is_that_of_the_reference(kind: str, seconds: float, checkpoints: dict[str, Path]) -> None:
    clips = [wave(seconds, i) for i in range(3)]
    ours = encode(EncoderSpec("audio", f"clap/{checkpoints[kind]}"), [to_file(c, RATE) for c in clips])
    expected = reference_embeddings(checkpoints[kind], clips)
    assert cosines(ours, expected).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    # The checkpoint tells these clips apart; otherwise the cosines above would prove nothing.
    assert cosines(expected[:1], expected[1:]).max() < 0.999


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
def test_any_file_is_the_reference_over_its_resampled_mix(
    form: str, rate: int, channels: int, checkpoints: dict[str, Path]
) -> None:
    samples = np.stack([wave(0.8, c, rate) for c in range(channels)], axis=1)
    data = to_file(samples, rate, form)
    decoded, _ = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    mixed = soxr.resample(decoded.mean(axis=1), rate, RATE, quality="VHQ").astype(np.float32)
    ours = encode(EncoderSpec("audio", str(checkpoints["rand_trunc"])), [data])
    assert cosines(ours, reference_embeddings(checkpoints["rand_trunc"], [mixed[:RATE]]))[0] >= 0.9999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("seconds", "options", "starts"),
    [
        (1.04, {}, [0.02]),
        (2.0, {}, [0, 1.0]),
        (2.5, {}, [0, 0.75, 1.5]),
        (9.0, {}, [0, 8 / 3, 16 / 3, 8]),
        (9.0, {"windows": 1}, [4.0]),
        (2.0, {"windows": 9, "hop_seconds": 0.25}, [0, 0.25, 0.5, 0.75, 1.0]),
    ],
    ids=["hardly longer", "two", "overlapping", "more than the most", "one in the middle", "a hop of its own"],
)
def test_long_clips_are_the_mean_of_their_windows(
    kind: str, seconds: float, options: dict[str, Any], starts: list[float], checkpoints: dict[str, Path]
) -> None:
    clip = wave(seconds)
    spec = EncoderSpec("audio", f"clap/{checkpoints[kind]}", tuple(sorted(options.items())))
    windows = [clip[round(s * RATE) : round(s * RATE) + RATE] for s in starts]
    expected = reference_embeddings(checkpoints[kind], windows).astype(np.float64).mean(axis=0)
    encoder = clap.load(spec)
    prepared = encoder.prepare(to_file(clip, RATE))
    assert encoder.cost(prepared) == len(starts)
    ours = encoder.encode([prepared])
    assert cosines(ours, expected[None])[0] >= 0.9999
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)


def test_long_clips_fused_are_the_reference(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "choice", lambda a: a[round(0.5 * (len(a) - 1))])
    path = checkpoints["fusion"]
    spec = EncoderSpec("audio", f"clap/{path}", (("long_clips", "fusion"),))
    clips = [wave(s, i) for i, s in enumerate((3.0, 0.4, 1.005, 1.7))]
    ours = encode(spec, [to_file(c, RATE) for c in clips])
    expected = np.concatenate([reference_embeddings(path, [c], longer=len(c) > RATE + 480) for c in clips])
    assert cosines(ours, expected).min() >= 0.9999
    assert cosines(ours[:1], reference_embeddings(path, [clips[0]], longer=False))[0] < 0.9999  # fusion matters


def test_batches_hold_windows_and_do_not_change_embeddings(checkpoints: dict[str, Path]) -> None:
    clips = [to_file(wave(s, i), RATE) for i, s in enumerate((0.4, 5.0, 1.0, 2.0, 0.1, 3.3))]
    encoder = clap.load(EncoderSpec("audio", f"clap/{checkpoints['rand_trunc']}", (("batch_windows", 4),)))
    prepared = [encoder.prepare(c) for c in clips]
    seen: list[int] = []
    whole = encoder.encode

    def watch(batch: Any) -> np.ndarray:
        seen.append(sum(encoder.cost(p) for p in batch))
        return whole(batch)

    encoder.encode = watch  # type: ignore[method-assign]
    got = dict(MicroBatcher(encoder).run(enumerate(prepared)))
    assert max(seen) <= 4
    assert len(seen) > 2
    alone = np.concatenate([whole([p]) for p in prepared])
    np.testing.assert_allclose(np.stack([np.asarray(got[i]) for i in range(6)]), alone, atol=2e-6)
    assert [p.nbytes for p in prepared] == [4 * RATE * k for k in (0.4, 4, 1, 2, 0.1, 4)]


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_text_is_that_of_the_reference(modality: str, checkpoints: dict[str, Path]) -> None:
    import torch
    import transformers as hf

    path = checkpoints["rand_trunc"]
    encoder = clap.load(EncoderSpec(modality, f"clap/{path}"))
    tower = text_tower_of(encoder) if modality == "audio" else encoder
    assert tower is not None
    assert tower.dim == encoder.dim
    ours = tower.encode([tower.prepare(t) for t in TEXTS])
    _, model = reference(path)
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    with torch.inference_mode():
        tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        inputs = {n: tokens[n] for n in ("input_ids", "attention_mask")}
        expected = model.get_text_features(**inputs).pooler_output.numpy()
    assert cosines(ours, expected).min() >= 0.9999


def test_the_id_follows_what_changes_the_output(checkpoints: dict[str, Path]) -> None:
    def id_with(options: dict[str, Any], modality: str = "audio", kind: str = "rand_trunc") -> str:
        return describe_encoder(EncoderSpec(modality, f"clap/{checkpoints[kind]}", tuple(options.items()))).encoder_id

    base = id_with({})
    assert base == id_with({"batch_windows": 3}) == id_with({"device": "cpu"})
    changed = [id_with(options) for options in ({"windows": 2}, {"hop_seconds": 0.5}, {"dtype": "bfloat16"})]
    changed += [id_with({}, "text"), id_with({}, kind="fusion")]
    assert len({base, *changed}) == 6
    info = describe_encoder(EncoderSpec("audio", str(checkpoints["rand_trunc"])))
    loaded = clap.load(EncoderSpec("audio", str(checkpoints["rand_trunc"])))
    assert info == (loaded.encoder_id, loaded.dim) == (base, 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"windows": 0}, ["encoders.audio.windows", "0", "whole number from 1"]),
        ({"hop_seconds": -1}, ["encoders.audio.hop_seconds", "-1", "over 0"]),
        ({"long_clips": "fusion"}, ["encoders.audio.long_clips", "rand_trunc"]),
        ({"wins": 3}, ["encoders.audio.wins", "windows"]),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_options_are_refused_in_one_line(
    options: dict[str, Any], words: list[str], checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(JobError) as e:
        describe_encoder(EncoderSpec("audio", f"clap/{checkpoints['rand_trunc']}", tuple(options.items())))
    assert all(w in str(e.value) for w in words)
    assert "\n" not in str(e.value)


def test_a_file_that_is_no_audio_is_an_input_error(checkpoints: dict[str, Path]) -> None:
    encoder = clap.load(EncoderSpec("audio", str(checkpoints["rand_trunc"])))
    with pytest.raises(InputError) as e:
        encoder.prepare(b"not a sound")
    assert e.value.reason == Reason.NOT_AUDIO
