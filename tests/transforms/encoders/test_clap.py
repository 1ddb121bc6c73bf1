"""CLAP held against transformers' own extractor, processor and model, on a tiny checkpoint in the true format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from tests.checkpoints import TEXTS, save_clap
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.clap import towers as clap
from unisono.transforms.encoders.clap.features import MelFeatures, pad_clip, read_recipe
from unisono.transforms.encoders.registry import describe_encoder, family_of
from unisono.transforms.media.windows import window_starts

RATE = 48_000
KINDS = ["rand_trunc", "fusion"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(f"clap-{kind}") for kind in KINDS}
    for kind, path in made.items():
        save_clap(path, kind)
    return made


def wave(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A sweep that fades in from silence, with a little noise: loud and quiet bands side by side."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    time = np.arange(n) / rate
    tone = np.sin(2 * np.pi * (200 + 300 * seed + 1500 * time) * time)
    return (0.6 * tone * np.linspace(0, 1, n) ** 3 + 1e-4 * rng.standard_normal(n)).astype(np.float32)


def to_file(samples: np.ndarray, rate: int, form: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    subtype = {"WAV": "FLOAT", "FLAC": "PCM_24"}.get(form)
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def reference(path: Path) -> tuple[Any, Any]:
    import transformers as hf

    model: Any = hf.ClapModel
    return hf.ClapFeatureExtractor.from_pretrained(path), model.from_pretrained(path).eval()


def reference_embeddings(path: Path, windows: list[np.ndarray], longer: bool = False) -> np.ndarray:
    """The library's own extractor and model over windows that are cut already."""
    import torch

    extractor, model = reference(path)
    inputs = extractor(windows, sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"] = torch.full((len(windows), 1), longer)  # it marks one at random
    with torch.inference_mode():
        embeddings: np.ndarray = model.get_audio_features(**inputs).pooler_output.numpy()
    return embeddings


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    out: np.ndarray = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return out


def encode(spec: EncoderSpec, files: list[bytes]) -> np.ndarray:
    encoder = clap.load(spec)
    return encoder.encode([encoder.prepare(f) for f in files])


# --- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_extractor(kind: str, padding: str, tmp_path: Path) -> None:
    import transformers as hf

    extractor = hf.ClapFeatureExtractor(truncation=kind, padding=padding, max_length_s=1)
    extractor.save_pretrained(tmp_path)
    recipe = read_recipe("k", tmp_path)
    clips = [wave(s, i) for i, s in enumerate((1.0, 0.3, 0.5, 0.013, 0.999))] + [np.zeros(RATE, np.float32)]
    expected = extractor(clips, sampling_rate=RATE, return_tensors="np")["input_features"]
    padded = np.empty((len(clips), recipe.window), np.float32)
    for clip, out in zip(clips, padded, strict=True):
        pad_clip(clip, out, padding)
    import torch

    ours = MelFeatures(recipe, "cpu")(torch.from_numpy(padded)).numpy()
    assert ours.shape == expected[:, 0].shape
    np.testing.assert_allclose(ours, expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config",
    [{"sampling_rate": 16_000, "hop_length": 160, "fft_window_size": 512, "frequency_min": 50, "frequency_max": 8000},
     {"feature_size": 80, "hop_length": 333, "fft_window_size": 1200, "frequency_max": 24_000}],
    ids=["16 kHz", "80 bands, odd hop"],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_features_follow_the_checkpoints_own_settings(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    import torch
    import transformers as hf

    extractor: Any = hf.ClapFeatureExtractor(truncation=kind, max_length_s=1, **config)
    extractor.save_pretrained(tmp_path)
    rate = config.get("sampling_rate", RATE)
    clips = np.stack([wave(1.0, i, rate) for i in range(3)])
    expected = extractor(list(clips), sampling_rate=rate, return_tensors="np")["input_features"]
    ours = MelFeatures(read_recipe("k", tmp_path), "cpu")(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(ours, expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seconds", [1.005, 1.011, 1.3, 4.0])
def test_fused_features_are_those_of_the_extractor(
    seconds: float, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, _ = reference(checkpoints["fusion"])
    monkeypatch.setattr(np.random, "choice", lambda a: a[round(0.5 * (len(a) - 1))])  # its draw: the middle
    clip = wave(seconds)
    expected = extractor([clip], sampling_rate=RATE, return_tensors="np")["input_features"][0]
    ours = MelFeatures(read_recipe("k", checkpoints["fusion"]), "cpu").fused(clip)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


# --- embeddings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.2, 0.7, 1.0], ids=["short", "shorter", "the window"])
def test_audio_is_that_of_the_reference(kind: str, seconds: float, checkpoints: dict[str, Path]) -> None:
    clips = [wave(seconds, i) for i in range(3)]
    ours = encode(EncoderSpec("audio", f"clap/{checkpoints[kind]}"), [to_file(c, RATE) for c in clips])
    expected = reference_embeddings(checkpoints[kind], clips)
    assert cosine(ours, expected).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    # the checkpoint tells these clips apart, so the cosine above says something
    assert cosine(expected[:1], expected[1:]).max() < 0.999


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
    assert cosine(ours, reference_embeddings(checkpoints["rand_trunc"], [mixed[:RATE]]))[0] >= 0.9999


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
    assert cosine(ours, expected[None])[0] >= 0.9999
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)


def test_long_clips_fused_are_the_reference(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.random, "choice", lambda a: a[round(0.5 * (len(a) - 1))])
    path = checkpoints["fusion"]
    spec = EncoderSpec("audio", f"clap/{path}", (("long_clips", "fusion"),))
    clips = [wave(s, i) for i, s in enumerate((3.0, 0.4, 1.005, 1.7))]
    ours = encode(spec, [to_file(c, RATE) for c in clips])
    expected = np.concatenate([reference_embeddings(path, [c], longer=len(c) > RATE + 480) for c in clips])
    assert cosine(ours, expected).min() >= 0.9999
    assert cosine(ours[:1], reference_embeddings(path, [clips[0]], longer=False))[0] < 0.9999  # fusion did something


def test_the_fused_attention_is_the_models_own(checkpoints: dict[str, Path]) -> None:
    import torch

    from unisono.transforms.encoders.clap.attention import fuse_attention

    _, model = reference(checkpoints["rand_trunc"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_position_bias_table" in name:
                weight.normal_()
    features = 20 * torch.randn(3, 1, 101, 64) - 30
    with torch.inference_mode():
        expected = model.get_audio_features(features).pooler_output
        fuse_attention(model)
        assert all("forward" in m.__dict__ for m in model.modules() if type(m).__name__ == "ClapAudioSelfAttention")
        np.testing.assert_allclose(model.get_audio_features(features).pooler_output, expected, atol=1e-5)


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
    assert cosine(ours, expected).min() >= 0.9999


# --- what is said before and instead -----------------------------------------------------------------------


def test_the_id_follows_what_changes_the_output(checkpoints: dict[str, Path]) -> None:
    def told(options: dict[str, Any], modality: str = "audio", kind: str = "rand_trunc") -> str:
        return describe_encoder(EncoderSpec(modality, f"clap/{checkpoints[kind]}", tuple(options.items()))).encoder_id

    base = told({})
    assert base == told({"batch_windows": 3}) == told({"device": "cpu"})
    changed = [told({"windows": 2}), told({"hop_seconds": 0.5}), told({"dtype": "bfloat16"}), told({}, "text")]
    changed.append(told({}, kind="fusion"))
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
def test_wrong_options_are_told_in_one_line(
    options: dict[str, Any], words: list[str], checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(JobError) as e:
        describe_encoder(EncoderSpec("audio", f"clap/{checkpoints['rand_trunc']}", tuple(options.items())))
    assert all(w in str(e.value) for w in words)
    assert "\n" not in str(e.value)


def test_a_wrong_checkpoint_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JobError, match=r"encoders.audio.model.*'bert'; allowed: clap"):
        describe_encoder(EncoderSpec("audio", f"clap/{tmp_path}"))


def test_families() -> None:
    assert family_of(EncoderSpec("audio", "laion/clap-htsat-unfused")) == "clap"
    assert family_of(EncoderSpec("text", "clap/laion/clap-htsat-unfused")) == "clap"
    assert family_of(EncoderSpec("text", "sentence-transformers/all-MiniLM-L6-v2")) == "transformers"


def test_what_is_no_audio_is_an_input_error(checkpoints: dict[str, Path]) -> None:
    encoder = clap.load(EncoderSpec("audio", str(checkpoints["rand_trunc"])))
    with pytest.raises(InputError) as e:
        encoder.prepare(b"not a sound")
    assert e.value.reason == Reason.NOT_AUDIO


@pytest.mark.parametrize("samples", [100, 101, 105, 106, 199, 200, 205, 206, 1000, 12345])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_windows_cover_a_clip(samples: int, most: int) -> None:
    starts = window_starts(samples, 100, 50, most)
    assert len(starts) <= most
    assert starts == sorted(set(starts))
    assert 0 <= min(starts) <= max(starts) <= samples - 100
    if len(starts) > 1:
        assert [starts[0], starts[-1]] == [0, samples - 100]
    if len(starts) < most:
        assert max(np.diff([*starts, samples - 100]), default=0) <= 55
