"""Compares the encode stage on a GPU with the forward alone and with the decoding alone, measured in the same run.

    .venv/bin/python -m benchmarks.gpu [--model ViT-B-32 …] [--items 20000] > gpu.json
    .venv/bin/python -m benchmarks.gpu --cpu-smoke      # a few inputs on the CPU: shows that it runs, measures nothing

For each model the result has
`forward_per_s`: a loop over inputs that are already on the device, in the dtype of the pipeline, at the fastest batch
size (doubled until this gains less than 3 % or memory is exhausted);
`decode_per_s`: the encoder's `prepare` in all threads (for texts: the tokenizer);
`pipeline_per_s`: the encode stage, from files to a column of embeddings;
`to_limit`: the rate of the pipeline divided by the smaller of the other two rates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MODELS = ("ViT-B-32", "ViT-L-14", "MiniLM", "CLAP")
TEXT_TOKENS = 32  # tokens of each text in the forward loop; the pipeline gets the texts of benchmarks/encode_text.py


def timed(run: Callable[[], int], seconds: float, sync: Callable[[], None]) -> float:
    """Repeats `run` for some seconds and returns inputs per second.

    Args:
        run: returns the number of inputs that it processed.
        seconds: how long to repeat.
        sync: waits until the device is done.
    """
    run()
    sync()
    done, started = 0, time.perf_counter()
    while True:
        done += run()
        sync()
        spent = time.perf_counter() - started
        if spent >= seconds:
            return done / spent


def best_batch(
    forward: Callable[[Any], Any], inputs: Callable[[int], Any], args: argparse.Namespace
) -> tuple[int, float]:
    """Doubles the batch until this gains less than 3 % or memory is exhausted.

    Returns:
        (the fastest batch size, its inputs per second)
    """
    import torch

    sync = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    best, rate, size = 0, 0.0, args.first_batch
    while size <= args.largest_batch:
        try:
            batch = inputs(size)

            def once(batch: Any = batch, size: int = size) -> int:
                with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, args.device == "cuda"):
                    forward(batch)
                return size

            found = timed(once, args.seconds, sync)
        except torch.OutOfMemoryError:
            break
        if found < rate * 1.03:
            break
        best, rate, size = size, found, size * 2
    return best, rate


def decode_rate(prepare: Callable[[Any], Any], raw: list[Any]) -> float:
    """Returns how many inputs per second all cores together prepare while nothing else runs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(prepare, raw[: len(raw) // 8 + 1]))
        started = time.perf_counter()
        list(pool.map(prepare, raw))
        return len(raw) / (time.perf_counter() - started)


def stage_rate(encoder: Any, modality: str, raw: list[str], folder: Path | None) -> float:
    """Returns the inputs per second of the encode stage, in shards of 4,096, after a warm-up.

    Raises:
        SystemExit: an input failed.
    """
    import pyarrow as pa

    from unisono.transforms.encode.microbatch import MicroBatcher
    from unisono.transforms.encode.prefetch import prefetch_pool
    from unisono.transforms.encode.shard import encode_table
    from unisono.transforms.media.fetch import MediaSource

    source, batcher = MediaSource(str(folder)) if folder else None, MicroBatcher(encoder)
    with prefetch_pool() as pool:

        def run(some: list[str]) -> None:
            table = pa.table({"item_id": pa.array(range(len(some))), modality: some})
            result = encode_table(table, modality, batcher, source, pool if source else None)
            if result.letters or result.table[f"{modality}_embedding"].null_count:
                raise SystemExit(f"{modality}: {len(result.letters)} inputs failed: {result.letters[0]}")

        run(raw[: len(raw) // 8 + 1])
        started = time.perf_counter()
        for at in range(0, len(raw), 4096):
            run(raw[at : at + 4096])
        return len(raw) / (time.perf_counter() - started)


# --- one function for each modality ------------------------------------------------------------------------


def image(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures a CLIP image tower over JPEGs of 640×480."""
    import open_clip
    import torch

    from benchmarks import encode_image
    from unisono.transforms.encoders.base import EncoderSpec
    from unisono.transforms.encoders.registry import get_encoder

    encode_image.prepare(folder, argparse.Namespace(images=min(args.items, args.files), architecture=name))
    model = open_clip.create_model(f"local-dir:{folder / 'clip'}").eval().to(args.device)
    side = model.visual.image_size[0]
    batch, forward = best_batch(model.encode_image, lambda n: torch.rand(n, 3, side, side, device=args.device), args)
    options = {"weights": str(folder / "clip"), "batch_size": batch, "device": args.device, "compile": args.compile}
    encoder = get_encoder(EncoderSpec("image", "open_clip", tuple(sorted(options.items()))))
    # Every file is another picture: the stage encodes equal content once.
    paths = sorted(str(p) for p in (folder / "jpeg").iterdir())
    raw = [Path(p).read_bytes() for p in paths]
    stage = stage_rate(encoder, "image", paths, folder / "jpeg")
    return report(batch, forward, decode_rate(encoder.prepare, raw), stage)


def text(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures MiniLM over texts of mixed length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from benchmarks import encode_text
    from unisono.transforms.encoders.base import EncoderSpec
    from unisono.transforms.encoders.registry import get_encoder

    encode_text.prepare(folder, argparse.Namespace(texts=args.items))
    texts = json.loads((folder / "texts.json").read_text())
    path = encode_text.checkpoint()
    model, tokenizer = AutoModel.from_pretrained(path).eval().to(args.device), AutoTokenizer.from_pretrained(path)
    lengths = sorted(map(len, tokenizer(texts[:4096], truncation=True, max_length=encode_text.MAX_TOKENS)["input_ids"]))
    mean = sum(lengths) / len(lengths)
    batch, forward = best_batch(
        lambda ids: model(input_ids=ids), lambda n: torch.full((n, TEXT_TOKENS), 2000, device=args.device), args
    )
    options = {"batch_tokens": batch * TEXT_TOKENS, "device": args.device, "compile": args.compile}
    encoder = get_encoder(EncoderSpec("text", path, tuple(sorted(options.items()))))
    blocks = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    decode = decode_rate(lambda some: tokenizer(some, truncation=True), blocks) * len(texts) / len(blocks)
    # The cost of a forward is in tokens, so the limit is scaled to texts of this mean length.
    limit = forward * TEXT_TOKENS / mean
    return {"mean_tokens": round(mean, 1), **report(batch, limit, decode, stage_rate(encoder, "text", texts, None))}


def audio(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measures CLAP's audio tower over sounds of 10 s."""
    import torch
    import transformers as hf

    from benchmarks import encode_audio
    from unisono.transforms.encoders.base import EncoderSpec
    from unisono.transforms.encoders.registry import get_encoder

    encode_audio.prepare(folder, argparse.Namespace(clips=min(args.items, args.files)))
    made: Any = hf.ClapModel
    model = made.from_pretrained(folder / "clap").eval().to(args.device)
    batch, forward = best_batch(
        lambda x: model.get_audio_features(input_features=x),
        lambda n: torch.randn(n, 1, 1001, 64, device=args.device),
        args,
    )
    options = {"batch_windows": batch, "device": args.device, "compile": args.compile}
    encoder = get_encoder(EncoderSpec("audio", f"clap/{folder / 'clap'}", tuple(sorted(options.items()))))
    paths = sorted(str(p) for p in (folder / "sounds").iterdir())
    raw = [Path(p).read_bytes() for p in paths]
    stage = stage_rate(encoder, "audio", paths, folder / "sounds")
    return report(batch, forward, decode_rate(encoder.prepare, raw), stage)


def report(batch: int, forward: float, decode: float, stage: float) -> dict[str, Any]:
    """Rounds the rates and compares the pipeline with the smaller limit."""
    return {
        "to_limit": round(stage / min(forward, decode), 3),
        "pipeline_per_s": round(stage, 1),
        "forward_per_s": round(forward, 1),
        "decode_per_s": round(decode, 1),
        "batch": batch,
    }


def main() -> None:
    """Prints JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", action="append", choices=MODELS, help="default: all models")
    made.add_argument("--items", type=int, default=20_000, help="how many texts; pictures or sounds at most --files")
    made.add_argument("--files", type=int, default=8192, help="largest number of different pictures or sounds to write")
    made.add_argument("--seconds", type=float, default=3.0, help="length of each forward loop")
    made.add_argument("--first-batch", type=int, default=32)
    made.add_argument("--largest-batch", type=int, default=4096)
    made.add_argument("--compile", action="store_true")
    made.add_argument("--cpu-smoke", action="store_true", help="a few inputs on the CPU: no measurement")
    args = made.parse_args()
    import torch

    if args.cpu_smoke:
        args.items = args.files = 6
        args.seconds, args.first_batch, args.largest_batch = 0.0, 2, 2
    elif not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: no CUDA device here; --cpu-smoke shows that it runs, without measuring")
    args.device = "cpu" if args.cpu_smoke else "cuda"
    found: dict[str, Any] = {
        "device": "cpu smoke run: no measurement" if args.cpu_smoke else torch.cuda.get_device_name(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in args.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            measure = {"MiniLM": text, "CLAP": audio}.get(name, image)
            found[name] = measure(name, Path(folder), args)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
