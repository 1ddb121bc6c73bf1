"""Faults of a real torch encoder in the stage: memory that runs out, and an input that makes it fail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from tests.pictures import write_pictures
from unisono.transforms.base.tables import from_vector_column
from unisono.transforms.encode.microbatch import MicroBatcher
from unisono.transforms.encode.shard import encode_table
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.clip import towers as family
from unisono.transforms.media.fetch import MediaSource

if TYPE_CHECKING:
    from torch import Tensor

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")


def spec_of(clip: Path, **options: object) -> EncoderSpec:
    return EncoderSpec("image", "open_clip", tuple(sorted({"weights": str(clip), "device": "cpu", **options}.items())))


def load(clip: Path, **options: object) -> family.OpenClipImageEncoder:
    encoder = family.load(spec_of(clip, **options))
    assert isinstance(encoder, family.OpenClipImageEncoder)
    return encoder


def encode_files(encoder: family.OpenClipImageEncoder, directory: Path, names: list[str]) -> tuple[np.ndarray, list]:
    table = pa.table({"item_id": names, "image": names})
    with ThreadPoolExecutor(4) as pool:
        result = encode_table(table, "image", MicroBatcher(encoder), MediaSource(str(directory)), pool)
    return from_vector_column(result.table["image_embedding"])[0], result.letters


def test_a_model_out_of_memory_above_three_still_encodes_everything(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 50)
    expected, _ = encode_files(load(clip), tmp_path, names)
    encoder = load(clip, batch_size=32)
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
    assert refused == [32, 16, 8, 4]  # each size is tried once; after that, no batch is larger than the last
    assert sum(s for s in sizes if s <= 3) == 50


def test_one_bad_picture_among_500_is_one_dead_letter(clip: Path, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, 500)
    encoder = load(clip, batch_size=64)
    poison = torch.from_numpy(encoder.prepare((tmp_path / names[317]).read_bytes()))
    exact = encoder._forward(poison[None])

    def fails_on_poison(module: object, inputs: tuple, output: Tensor) -> None:
        if (output / output.norm(dim=-1, keepdim=True) - exact).abs().amax(-1).min() < 1e-6:
            raise RuntimeError("CUDA error: device-side assert triggered")

    hook = encoder._model.visual.register_forward_hook(fails_on_poison)
    got, letters = encode_files(encoder, tmp_path, names)
    hook.remove()
    assert [(x.item_id, str(x.reason), x.uri) for x in letters] == [(names[317], "encoder_failed", names[317])]
    good = np.arange(500) != 317
    np.testing.assert_allclose(np.linalg.norm(got[good], axis=1), 1, atol=1e-5)
