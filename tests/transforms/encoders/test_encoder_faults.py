"""Real torch encoders under faults, and through the whole job: memory, poison, wrong checkpoints, search by words."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.checkpoints import save_open_clip
from unisono.pipelines.ask.search import Searcher, search
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.stage import encode_table
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.encoders.registry import get_encoder
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.store.runs import Store

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")



@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save_open_clip(path)
    return path


def write_pictures(directory: Path, n: int) -> list[str]:
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    for i in range(n):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((48, 36), Image.Resampling.BICUBIC).save(directory / f"{i:03}.jpg", quality=90)
    return [f"{i:03}.jpg" for i in range(n)]


def spec_of(clip: Path, **options: object) -> EncoderSpec:
    return EncoderSpec("image", "open_clip", tuple(sorted({"weights": str(clip), "device": "cpu", **options}.items())))


def encode_files(encoder: Encoder, directory: Path, names: list[str]) -> tuple[np.ndarray, list]:
    table = pa.table({"item_id": names, "image": names})
    with ThreadPoolExecutor(4) as pool:
        result = encode_table(table, "image", MicroBatcher(encoder), MediaSource(str(directory)), pool)
    return from_vector_column(result.table["image_embedding"])[0], result.letters


def test_a_model_out_of_memory_above_three_still_encodes_everything(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 50)
    expected, _ = encode_files(family.load(spec_of(clip)), tmp_path, names)
    encoder: Any = family.load(spec_of(clip, batch_size=32))
    sizes: list[int] = []

    def memory_of_three(module: object, inputs: tuple) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = encoder._model.visual.register_forward_pre_hook(memory_of_three)
    got, letters = encode_files(encoder, tmp_path, names)
    hook.remove()
    assert letters == []
    np.testing.assert_allclose(got, expected, atol=1e-6)
    refused = [s for s in sizes if s > 3]
    assert refused == [32, 16, 8, 4]  # each size is tried once, and what holds is remembered
    assert sum(s for s in sizes if s <= 3) == 50


def test_one_poisonous_picture_among_500_costs_one_dead_letter(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 500)
    encoder: Any = family.load(spec_of(clip, batch_size=64))
    poison = torch.from_numpy(encoder.prepare((tmp_path / names[317]).read_bytes()))
    exact = encoder._forward(poison[None])

    def fails_on_poison(module: object, inputs: tuple, output: Any) -> None:
        if (output / output.norm(dim=-1, keepdim=True) - exact).abs().amax(-1).min() < 1e-6:
            raise RuntimeError("CUDA error: device-side assert triggered")

    hook = encoder._model.visual.register_forward_hook(fails_on_poison)
    got, letters = encode_files(encoder, tmp_path, names)
    hook.remove()
    assert [(x.item_id, str(x.reason), x.uri) for x in letters] == [(names[317], "encoder_failed", names[317])]
    good = np.arange(500) != 317
    np.testing.assert_allclose(np.linalg.norm(got[good], axis=1), 1, atol=1e-5)


# --- through the whole job ---------------------------------------------------------------------------------


def write_job(directory: Path, names: list[str], image: object) -> Path:
    texts = [f"item number {n} in {c}" for n, c in zip(range(len(names)), ["red", "green", "blue"] * 99, strict=False)]
    pq.write_table(pa.table({"id": names, "t": texts, "image": names}), directory / "c.parquet")
    body = {
        "store": "out",
        "catalog": {"path": "c.parquet", "id": "id", "text": "t", "image": "image"},
        "encoders": {"image": image},
        "space": {"dim": 8},
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(body))
    return directory / "job.yaml"


def unisono(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "unisono.pipelines.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param({"model": "open_clip/ViT-B-32"}, "encoders.image.weights: missing; give a tag", id="none"),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./gone"}, "image.weights: no file or directory", id="gone"
        ),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./wrong"}, "image.weights: holds a model of", id="wrong"
        ),
        pytest.param(
            {"model": "open_clip/ViT-B-32", "weights": "./pickle.pt"}, "pickle.pt is no safetensors file", id="pickled"
        ),
    ],
)
def test_a_missing_or_wrong_checkpoint_is_one_line_before_any_work(
    image: dict, message: str, clip: Path, tmp_path: Path
) -> None:
    names = write_pictures(tmp_path, 3)
    job = write_job(tmp_path, names, image)
    (tmp_path / "wrong").symlink_to(clip)
    (tmp_path / "pickle.pt").write_bytes(b"x")
    done = unisono("embed", "--config", str(job))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("unisono: error: ")
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_words_ask_the_pictures_too(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 40)
    job = write_job(tmp_path, names, {"model": "open_clip", "weights": str(clip), "device": "cpu"})
    done = unisono("embed", "--config", str(job), "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    query = "a red bell"
    # By hand: the text encoder's vector and CLIP's text vector, each in the joint space, their mean.
    space = Searcher(store).space
    lite = get_encoder(EncoderSpec("text", "lite"))
    tower = family.load(EncoderSpec("text", "open_clip", (("device", "cpu"), ("weights", str(clip)))))
    parts = [
        space.project("text", lite.encode([lite.prepare(query)]))[0],
        space.project("image", tower.encode([tower.prepare(query)]))[0],
    ]
    expected = np.add(*parts) / np.linalg.norm(np.add(*parts))
    got = Searcher(store).embed_query("text", query)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert not np.allclose(got, parts[0], atol=1e-3)
    searcher = Searcher(store)
    best = int(np.argmax(searcher.vectors @ expected))
    assert search(store, text=query, k=3)[0].item_id == searcher.items["item_id"][best].as_py()
    # And a picture finds itself.
    assert search(store, image=str(tmp_path / names[7]), k=40)[0].rank == 1


def test_words_ask_pictures_where_there_is_no_text(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 20)
    job = write_job(tmp_path, names, {"model": "open_clip", "weights": str(clip), "device": "cpu"})
    body = yaml.safe_load(job.read_text())
    del body["catalog"]["text"]
    job.write_text(yaml.safe_dump(body))
    done = unisono("embed", "--config", str(job))
    assert done.returncode == 0, done.stderr
    assert len(search(Store(str(tmp_path / "out")), text="a red bell", k=3)) == 3
