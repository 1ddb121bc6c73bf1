"""The options that all torch families share, and what a model and its inputs become on their device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.torch_runtime import (
    TorchRuntime,
    TorchSettings,
    read_choice,
    read_seconds,
    read_settings,
    read_string,
    read_whole,
)

torch = pytest.importorskip("torch")


def spec_of(**options: Any) -> EncoderSpec:
    return EncoderSpec("image", "open_clip", tuple(sorted(options.items())))


def test_the_defaults_and_every_option() -> None:
    assert read_settings(spec_of(), ()) == TorchSettings("auto", "auto", False, None)
    spec = spec_of(device="cuda:1", dtype="float16", compile=True, threads=3, own=1)
    assert read_settings(spec, ("own",)) == TorchSettings("cuda:1", "float16", True, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"pool": 1}, r"pool: no such option; allowed: compile, device, dtype, own, threads", id="unknown"),
        pytest.param({"dtype": "int8"}, r"dtype: got 'int8'; allowed: auto, float32, bfloat16, float16", id="dtype"),
        pytest.param({"device": "gpu"}, r"device: got 'gpu'; allowed: auto, cpu, cuda, cuda:0", id="device"),
        pytest.param({"device": 0}, r"device: got 0; allowed: auto, cpu, cuda", id="device-number"),
        pytest.param({"compile": "yes"}, r"compile: got 'yes'; allowed: true, false", id="compile"),
        pytest.param({"threads": 0}, r"threads: got 0; allowed: a whole number from 1", id="threads"),
        pytest.param({"threads": True}, r"threads: got True; allowed: a whole number from 1", id="threads-bool"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=rf"^encoders\.image\.{message}"):
        read_settings(spec_of(**options), ("own",))


def test_single_options() -> None:
    spec = spec_of(a="x", b=2, c=1.5)
    assert read_choice(spec, "a", ("y", "x")) == "x"
    assert read_choice(spec, "none", ("y", "x")) == "y"
    assert (read_whole(spec, "b", 7), read_whole(spec, "none", 7), read_whole(spec, "none", None)) == (2, 7, None)
    assert (read_string(spec, "a"), read_string(spec, "none")) == ("x", None)
    assert (read_seconds(spec, "c", 3), read_seconds(spec, "none", 3)) == (1.5, 3)
    assert read_seconds(spec, "none", None) is None
    for read, arguments in ((read_string, ("b",)), (read_seconds, ("a", 1.0)), (read_whole, ("c", 1))):
        with pytest.raises(JobError, match=rf"^encoders\.image\.{arguments[0]}: got .*; allowed: "):
            read(spec, *arguments)


def test_a_device_that_is_not_there_is_refused() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(JobError, match=rf"^encoders\.image\.device: got {absent}, .*write auto or cpu"):
        TorchRuntime(spec_of(), TorchSettings(device=absent))


def test_arrays_go_to_the_device_and_come_back() -> None:
    runtime = TorchRuntime(spec_of(), TorchSettings(device="cpu"))
    rows = [np.array([1, 2], np.uint8), np.array([3, 4], np.uint8)]
    stacked = runtime.stack(rows)
    assert stacked.dtype == torch.uint8
    np.testing.assert_array_equal(runtime.fetch(stacked), np.array([[1, 2], [3, 4]], np.float32))
    assert runtime.fetch(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert runtime.send({"a": stacked}) == {"a": stacked}


@pytest.mark.parametrize(("dtype", "exact"), [("auto", True), ("float32", True), ("bfloat16", False)])
def test_matrix_products_have_the_jobs_dtype(dtype: str, exact: bool) -> None:
    runtime = TorchRuntime(spec_of(), TorchSettings(device="cpu", dtype=dtype))
    layer = runtime.place(torch.nn.Linear(50, 20))
    assert {p.requires_grad for p in layer.parameters()} == {False}
    x = torch.randn(30, 50, generator=torch.Generator().manual_seed(0))
    with runtime.inference():
        got = runtime.fetch(layer(x))
    expected = x.double().numpy() @ layer.weight.double().numpy().T + layer.bias.double().numpy()
    error = np.abs(got - expected).max()
    assert bool(error < 1e-5) is exact
    assert error < 0.1
