"""Measures the time and the memory of `unisono demo` in a new process, and compares them with their limits.

    .venv/bin/python -m benchmarks.demo [--items 2000]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

LIMIT_S, LIMIT_BYTES = 90.0, 2 * 10**9


def watch(process: psutil.Popen, stop: threading.Event) -> int:
    """Samples the resident memory of a process and its children until `stop` is set.

    Returns:
        the largest sum seen, in bytes.
    """
    peak = 0
    while not stop.wait(0.05):
        total = 0
        try:
            for p in (process, *process.children(recursive=True)):
                total += p.memory_info().rss
        except psutil.Error:  # a process ended between the two calls
            continue
        peak = max(peak, total)
    return peak


def run_demo(out: Path, items: int) -> tuple[float, int]:
    """Runs the demo and returns its time in seconds and its peak memory in bytes."""
    started = time.monotonic()
    process = psutil.Popen(
        [sys.executable, "-m", "unisono.pipelines.cli", "demo", "--out", str(out), "--items", str(items)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stop, peak = threading.Event(), [0]
    thread = threading.Thread(target=lambda: peak.__setitem__(0, watch(process, stop)))
    thread.start()
    code = process.wait()
    seconds = time.monotonic() - started
    stop.set()
    thread.join()
    if code != 0:
        raise SystemExit(f"the demo ended with exit code {code}")
    return seconds, peak[0]


def main() -> None:
    """Runs the demo twice and prints JSON, the ratios to the limits first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2000)
    items = parser.parse_args().items
    out = Path(tempfile.mkdtemp(prefix="unisono-demo-"))
    try:
        seconds, peak = run_demo(out, items)
        again, peak_again = run_demo(out, items)
    finally:
        shutil.rmtree(out)
    result = {
        "time_over_limit": round(seconds / LIMIT_S, 3),
        "memory_over_limit": round(max(peak, peak_again) / LIMIT_BYTES, 3),
        "seconds": round(seconds, 1),
        "limit_seconds": LIMIT_S,
        "peak_bytes": max(peak, peak_again),
        "limit_bytes": LIMIT_BYTES,
        "seconds_again": round(again, 1),  # with the shop already made, and its embeddings reused
        "items": items,
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
