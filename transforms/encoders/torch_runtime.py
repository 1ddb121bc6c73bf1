"""Runs torch models: the device, the number format, and copies to and from the device.

Shared by the families that use torch. Importing this file does not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec

# Options that every torch family has. Only `dtype` enters the encoder_id (see `TorchSettings.facts`).
OPTIONS = ("compile", "device", "dtype", "threads")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


class TorchSettings(NamedTuple):
    """The options that all torch families share, after their check.

    Attributes:
        device: `auto` (the first CUDA device if there is one, else the CPU), `cpu`, `cuda`, or one such as `cuda:1`.
        dtype: the number format of matrix products. `auto` means bfloat16 on CUDA and float32 on the CPU. Any other
            value applies to both.
        compile: whether the model runs through `torch.compile`.
        threads: how many CPU threads torch uses, for the whole process. None means as many as torch chooses.
    """

    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    threads: int | None = None

    @property
    def facts(self) -> dict[str, str]:
        """The settings that belong in an encoder_id.

        The id contains the value of `dtype` in the job file, not the number format that this machine chooses for it.
        So a launcher without a GPU computes the same id as a worker with one, and a laptop can search embeddings that
        a GPU made. With `auto`, embeddings from the two may differ by bfloat16's rounding. A job that needs equal
        embeddings sets a dtype.
        """
        return {"dtype": self.dtype}


def read_settings(spec: EncoderSpec, own_options: Sequence[str]) -> TorchSettings:
    """Reads the shared options of an encoder, and checks that there are no unknown ones.

    Args:
        spec: the encoder's spec.
        own_options: names of the further options that its family reads itself.

    Raises:
        JobError: an option is unknown, or a shared option has a value that is not allowed.
    """
    options, known = dict(spec.options), sorted({*own_options, *OPTIONS})
    for name in options:
        if name not in known:
            raise JobError(f"{spec.key}.{name}: no such option; allowed: {', '.join(known)}")
    device = options.get("device", "auto")
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise JobError(f"{spec.key}.device: got {device!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, …")
    dtype = read_choice(spec, "dtype", DTYPES)
    compiled = options.get("compile", False)
    if not isinstance(compiled, bool):
        raise JobError(f"{spec.key}.compile: got {compiled!r}; allowed: true, false")
    return TorchSettings(device, dtype, compiled, read_whole(spec, "threads", None))


def read_choice(spec: EncoderSpec, name: str, allowed: Sequence[str]) -> str:
    """Reads an option whose value is one of a few words. The first allowed word is the default.

    Raises:
        JobError: the value is none of the allowed words.
    """
    value = dict(spec.options).get(name, allowed[0])
    if value not in allowed:
        raise JobError(f"{spec.key}.{name}: got {value!r}; allowed: {', '.join(allowed)}")
    return str(value)


def read_whole(spec: EncoderSpec, name: str, default: int | None) -> Any:
    """Reads an option whose value is a whole number from 1.

    Raises:
        JobError: the value is something else.
    """
    value = dict(spec.options).get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise JobError(f"{spec.key}.{name}: got {value!r}; allowed: a whole number from 1")
    return value


def read_string(spec: EncoderSpec, name: str) -> str | None:
    """Reads an option whose value is a string. None means that the job does not set it.

    Raises:
        JobError: the value is something else.
    """
    options = dict(spec.options)
    if not isinstance(options.get(name, ""), str):
        raise JobError(f"{spec.key}.{name}: got {options[name]!r}; allowed: a string")
    return options.get(name)


def read_seconds(spec: EncoderSpec, name: str, default: float | None) -> Any:
    """Reads an option whose value is a positive number.

    Raises:
        JobError: the value is something else.
    """
    value = dict(spec.options).get(name, default)
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise JobError(f"{spec.key}.{name}: got {value!r}; allowed: a number over 0")
    return float(value)


class TorchRuntime:
    """Moves a model and its inputs to a device.

    Args:
        spec: the encoder's spec; error messages name its key.
        settings: the options of the job.

    Attributes:
        device: the torch.device.
        on_cuda: whether the device is a GPU.

    Raises:
        JobError: this machine has no such device.
    """

    def __init__(self, spec: EncoderSpec, settings: TorchSettings) -> None:
        import torch

        self._torch = torch
        self._compile = settings.compile
        self.device = _device(spec.key, settings.device)
        self.on_cuda = self.device.type == "cuda"
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        name = settings.dtype
        if name == "auto":
            name = "bfloat16" if self.on_cuda else "float32"
        self._autocast = None if name == "float32" else getattr(torch, name)

    def place(self, model: Any) -> Any:
        """Moves a `torch.nn.Module` to the device, in evaluation mode and without gradients.

        Weights stay float32. Matrix products are cast to the job's dtype in `inference`.
        """
        return model.eval().requires_grad_(False).to(self.device)

    def compiled(self, function: _Callable) -> _Callable:
        """Returns a module or function after `torch.compile` if the job asks for that, else unchanged."""
        # Batches differ in size and length. Without `dynamic`, each new shape would be compiled again.
        return cast(_Callable, self._torch.compile(function, dynamic=True)) if self._compile else function

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Runs its body without gradients, with matrix products in the job's dtype."""
        torch = self._torch
        with torch.inference_mode():
            if self._autocast is None:
                yield
            else:
                with torch.autocast(self.device.type, dtype=self._autocast):
                    yield

    def stack(self, arrays: Sequence[np.ndarray]) -> Any:
        """Stacks arrays of one shape into a tensor on the device.

        For a GPU the arrays are copied once, into pinned memory, and from there without waiting. torch's allocator
        does not reuse the pinned block before that copy is done.
        """
        torch = self._torch
        if not self.on_cuda:
            return torch.from_numpy(np.stack(arrays))
        kind = torch.from_numpy(arrays[0][:0]).dtype
        pinned = torch.empty((len(arrays), *arrays[0].shape), dtype=kind, pin_memory=True)
        np.stack(arrays, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)

    def send(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Copies CPU tensors to the device. For a GPU, it does not wait for the copies."""
        if not self.on_cuda:
            return dict(tensors)
        return {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}

    def fetch(self, tensor: Any) -> np.ndarray:
        """Copies a tensor to host memory, as float32."""
        return cast(np.ndarray, tensor.float().cpu().numpy())


def _device(key: str, wanted: str) -> Any:
    """Returns the torch.device that a job asks for.

    Raises:
        JobError: this machine has no such device.
    """
    import torch

    count = _cuda_devices() if wanted != "cpu" else 0
    if wanted == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if wanted != "cpu" and int(wanted.partition(":")[2] or 0) >= count:
        raise JobError(f"{key}.device: got {wanted}, but this machine has {count} CUDA devices; write auto or cpu")
    return torch.device(wanted)


@functools.cache
def _cuda_devices() -> int:
    """Counts the GPUs, once per process, so that all encoders get the same answer even if a GPU is lost later."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
