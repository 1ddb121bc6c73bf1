"""JPEGs of 640×480 through a CLIP image tower: a part of `benchmarks/encode.py`."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encode import Clock, Measured, encode_stage, resident_bytes, stock_pipeline


def write_jpegs(folder: Path, n: int, height: int = 480, width: int = 640) -> None:
    """Writes `n` different JPEGs of about 100 kB with quality 88: gradients, waves and noise."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for i in range(n):
        wave = 128 + 90 * np.sin(x / rng.uniform(4, 30)) * np.cos(y / rng.uniform(4, 30))
        pixels = np.stack([x * 255 / width, y * 255 / height, wave], axis=-1)
        pixels += rng.normal(0, 10, pixels.shape).astype(np.float32)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=88)


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Writes the JPEGs and a checkpoint with random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    write_jpegs(folder / "jpeg", args.images)
    torch.manual_seed(0)
    config = open_clip.get_model_config(args.architecture)
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    model = open_clip.create_model(args.architecture)
    save_file(model.state_dict(), folder / "clip" / "open_clip_model.safetensors")
    torch.save(model.state_dict(), folder / "state.pt")  # for PytorchModelHandler


def _paths(folder: Path) -> list[str]:
    return sorted(str(p) for p in (folder / "jpeg").iterdir())


def pipeline(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the encode stage, from file names to a column of embeddings."""
    import pyarrow as pa

    from unisono.transforms.encoders.base import EncoderSpec
    from unisono.transforms.media.fetch import MediaSource

    paths = _paths(folder)
    options = {"weights": str(folder / "clip"), "batch_size": args.image_batch, "decode": args.decode, "device": "cpu"}
    spec = EncoderSpec("image", "open_clip", tuple(sorted(options.items())))
    cuts = np.linspace(0, len(paths), args.shards + 1).astype(int)
    shards = [
        (i, pa.table({"item_id": paths[a:b], "image": paths[a:b]}))
        for i, (a, b) in enumerate(itertools.pairwise(cuts))
    ]
    warm_up = [Path(p).read_bytes() for p in paths[: args.image_batch]]
    return encode_stage(spec, MediaSource(str(folder / "jpeg")), shards, warm_up)


def limit(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures the forward loop alone, over batches that are already float tensors in memory."""
    started = time.perf_counter()
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder / 'clip'}")
    model = model.eval()
    decoded = [transform(Image.open(p)) for p in _paths(folder)[: 2 * args.image_batch]]
    batches = [torch.stack(decoded[: args.image_batch]), torch.stack(decoded[-args.image_batch :])]
    with torch.inference_mode():
        model.encode_image(batches[0])
        startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
        items, clock = 0, Clock()
        while items < args.images:
            items += len(model.encode_image(batches[items // args.image_batch % 2], normalize=True).numpy())
    seconds, cpu_s = clock.read()
    return Measured(items, seconds, startup_s, model_bytes, cpu_s)


class ImageTower:
    """The model class for PytorchModelHandler: a CLIP model whose `forward` is the image tower."""

    def __new__(cls, architecture: str) -> Any:
        import open_clip

        model = open_clip.create_model(architecture)
        model.forward = model.encode_image
        return model


def decode_as_open_clip_does(path: str) -> Any:
    """Decodes one picture to a float tensor."""
    import open_clip
    from PIL import Image

    transform = open_clip.image_transform(224, is_train=False)
    return transform(Image.open(io.BytesIO(Path(path).read_bytes())))


def stock(folder: Path, args: argparse.Namespace) -> Measured:
    """Measures what a user would write: one element for each picture, open_clip's transform in a Map, RunInference."""
    from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

    handler = PytorchModelHandlerTensor(
        state_dict_path=str(folder / "state.pt"),
        model_class=ImageTower,
        model_params={"architecture": args.architecture},
        min_batch_size=args.image_batch,
        max_batch_size=args.image_batch,
    )
    return stock_pipeline(_paths(folder), decode_as_open_clip_does, handler)


MEASURES = {"pipeline": pipeline, "limit": limit, "stock": stock}
