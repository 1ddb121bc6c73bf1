"""Sounds of 10 s through CLAP's audio tower: a part of `benchmarks/encode.py`.

Besides the pipeline, its limit and stock Beam it measures transformers' extractor and model in a plain loop
(`library`). It also measures the features alone, over waveforms in memory: ours (`features`) and those of transformers
(`extractor`).
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode import Clock, Measured, encode_stage, resident_bytes, stock_pipeline

RATE = 48_000
SECONDS = 10


def write_sounds(folder: Path, n: int, rate: int = RATE, seconds: float = SECONDS) -> None:
    """Writes `n` different stereo FLAC files of 16 bits: chords that fade in and out, with noise."""
    import soundfile

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    at = np.arange(round(rate * seconds)) / rate
    for i in range(n):
        tones = [np.sin(2 * np.pi * rng.uniform(80, 8000) * at) for _ in range(3)]
        swell = np.sin(np.pi * rng.uniform(0.2, 2) * at) ** 2
        mono = 0.2 * swell * np.sum(tones, axis=0) + 0.01 * rng.standard_normal(len(at))
        stereo = np.stack([mono, np.roll(mono, 100)], axis=1)
        soundfile.write(folder / f"{i:05}.flac", stereo, rate, subtype="PCM_16")


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Writes the sounds, and a checkpoint with random weights in the size of laion/clap-htsat-unfused."""
    import torch
    import transformers as hf

    write_sounds(folder / "sounds", args.clips)
    torch.manual_seed(0)
    made: Any = hf.ClapModel
    model = made(hf.ClapConfig())
    model.save_pretrained(folder / "clap")
    hf.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder / "clap")
    torch.save(AudioTower(str(folder / "clap")).state_dict(), folder / "state.pt")  # for PytorchModelHandler


def _paths(folder: Path) -> list[str]:
    return sorted(str(p) for p in (folder / "sounds").iterdir())


def _read(path: str) -> np.ndarray:
    """Reads a file as mono, which the extractor needs. The files already have the model's sample rate."""
    import soundfile

    samples, _ = soundfile.read(io.BytesIO(Path(path).read_bytes()), dtype="float32", always_2d=True)
    mono: np.ndarray = samples.mean(axis=1)
    return mono


def _library(folder: Path) -> tuple[Any, Any]:
    import transformers as hf

    made: Any = hf.ClapModel
    extractor = hf.ClapFeatureExtractor.from_pretrained(folder / "clap")
    return extractor, made.from_pretrained(folder / "clap").eval()


def pipeline(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the encode stage, from file names to a column of embeddings."""
    import pyarrow as pa

    from unisono.transforms.encoders.base import EncoderSpec
    from unisono.transforms.media.fetch import MediaSource

    paths = _paths(folder)
    options = (("batch_windows", args.audio_batch), ("device", "cpu"))
    spec = EncoderSpec("audio", f"clap/{folder / 'clap'}", options)
    cuts = np.linspace(0, len(paths), args.shards + 1).astype(int).tolist()
    tables = [pa.table({"item_id": paths[a:b], "audio": paths[a:b]}) for a, b in itertools.pairwise(cuts)]
    warm_up = [Path(p).read_bytes() for p in paths[: args.audio_batch]]
    return encode_stage(spec, MediaSource(str(folder / "sounds")), list(enumerate(tables)), warm_up)


def limit(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the forward loop alone, over features that are already tensors in memory."""
    started = time.perf_counter()
    import torch

    extractor, model = _library(folder)
    waves = [_read(p) for p in _paths(folder)[: args.audio_batch]]
    inputs = extractor(waves, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        model.get_audio_features(**inputs)
        startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
        items, clock = 0, Clock()
        while items < args.clips:
            items += len(model.get_audio_features(**inputs).pooler_output.numpy())
    seconds, cpu_s = clock.read()
    return Measured(items, seconds, startup_s, model_bytes, cpu_s)


def library(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures transformers' extractor and model in a loop over batches. Files are read one after another."""
    started = time.perf_counter()
    import torch

    extractor, model = _library(folder)
    paths = _paths(folder)

    def encode(some: list[str]) -> int:
        inputs = extractor([_read(p) for p in some], sampling_rate=RATE, return_tensors="pt")
        return len(model.get_audio_features(**inputs).pooler_output.numpy())

    with torch.inference_mode():
        encode(paths[: args.audio_batch])
        startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
        clock = Clock()
        starts = range(0, len(paths), args.audio_batch)
        items = sum(encode(paths[s : s + args.audio_batch]) for s in starts)
    seconds, cpu_s = clock.read()
    return Measured(items, seconds, startup_s, model_bytes, cpu_s)


class AudioTower:
    """The model class for PytorchModelHandler: a CLAP model whose `forward` is the audio tower."""

    def __new__(cls, path: str) -> Any:
        import transformers as hf

        made: Any = hf.ClapModel
        model = made(hf.ClapConfig.from_pretrained(path))
        model.forward = lambda batch: model.get_audio_features(batch).pooler_output
        return model


class ReadAndExtract:
    """Computes the features of one file, as the model card shows it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._extractor: Any = None

    def __call__(self, path: str) -> Any:
        if self._extractor is None:
            import transformers as hf

            self._extractor = hf.ClapFeatureExtractor.from_pretrained(self._path)
        return self._extractor(_read(path), sampling_rate=RATE, return_tensors="pt")["input_features"][0]


def stock(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures what a user would write: one element for each sound, transformers' extractor in a Map, RunInference."""
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    handler = PytorchModelHandlerTensor(
        state_dict_path=str(folder / "state.pt"),
        model_class=AudioTower,
        model_params={"path": str(folder / "clap")},
        min_batch_size=args.audio_batch,
        max_batch_size=args.audio_batch,
    )
    return stock_pipeline(_paths(folder), ReadAndExtract(str(folder / "clap")), handler)


def features(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures our features alone, over waveforms in memory."""
    started = time.perf_counter()
    import torch

    from unisono.transforms.encoders.clap.features import MelFeatures, read_recipe

    made = MelFeatures(read_recipe("benchmark", folder / "clap"), "cpu")
    waves = torch.from_numpy(np.stack([_read(p) for p in _paths(folder)[: args.audio_batch]]))
    with torch.inference_mode():
        made(waves)
        startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
        items, clock = 0, Clock()
        while items < args.clips:
            items += len(made(waves))
    seconds, cpu_s = clock.read()
    return Measured(items, seconds, startup_s, model_bytes, cpu_s)


def extractor(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures transformers' extractor alone, over waveforms in memory."""
    started = time.perf_counter()
    import transformers as hf

    made = hf.ClapFeatureExtractor.from_pretrained(folder / "clap")
    waves = [_read(p) for p in _paths(folder)[: args.audio_batch]]
    made(waves, sampling_rate=RATE, return_tensors="pt")
    startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
    items, clock = 0, Clock()
    while items < args.clips:
        items += len(made(waves, sampling_rate=RATE, return_tensors="pt")["input_features"])
    seconds, cpu_s = clock.read()
    return Measured(items, seconds, startup_s, model_bytes, cpu_s)


MEASURES = {
    "pipeline": pipeline,
    "limit": limit,
    "library": library,
    "stock": stock,
    "features": features,
    "extractor": extractor,
}
RATIOS = [("features", "extractor")]  # a further ratio to report
