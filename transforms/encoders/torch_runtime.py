"""Where and how torch models run: device, number format, copies. Shared by the families that load them.

Importing this file does not import torch.
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

# Options of every torch family; of these only `dtype` goes into an encoder_id (`TorchSettings.facts`).
OPTIONS = ("compile", "device", "dtype", "threads")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_Callable = TypeVar("_Callable", bound=Callable[..., Any])


class TorchSettings(NamedTuple):
    """The options that all torch families share, checked.

    Attributes:
        device: `auto` (the first CUDA device, else the CPU), `cpu`, `cuda`, `cuda:1`.
        dtype: of the matrix products. `auto` is bfloat16 on CUDA and float32 on the CPU; any other holds on both.
        compile: run the model through `torch.compile`.
        threads: that torch computes with on the CPU, in the whole process; None: as torch chooses.
    """

    device: str = "auto"
    dtype: str = "auto"
    compile: bool = False
    threads: int | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What of these belongs in an encoder_id.

        The word of the job file, not the number format of this machine: the id is told on a launcher without a
        GPU, and a search on a laptop meets the embeddings of a run on one. `auto` allows them to differ by
        bfloat16's rounding; who does not want that names a dtype.
        """
        return {"dtype": self.dtype}


def read_settings(spec: EncoderSpec, own_options: Sequence[str]) -> TorchSettings:
    """Checks that a spec has no unknown option, and reads the shared ones.

    Args:
        spec: of the encoder.
        own_options: further options that its family reads itself.

    Raises:
        JobError: an unknown option, or a shared one with a value that is not allowed.
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
    """Reads an option that is one of a few words; the first is the default.

    Raises:
        JobError: it is none of them.
    """
    value = dict(spec.options).get(name, allowed[0])
    if value not in allowed:
        raise JobError(f"{spec.key}.{name}: got {value!r}; allowed: {', '.join(allowed)}")
    return str(value)


def read_whole(spec: EncoderSpec, name: str, default: int | None) -> Any:
    """Reads an option that is a whole number from 1.

    Raises:
        JobError: it is none.
    """
    value = dict(spec.options).get(name, default)
    if value is not default and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise JobError(f"{spec.key}.{name}: got {value!r}; allowed: a whole number from 1")
    return value


class TorchRuntime:
    """Puts a model on its device, and inputs beside it.

    Args:
        spec: named in messages.
        settings: of the job.

    Attributes:
        device: torch.device.
        on_cuda: whether it is a GPU.

    Raises:
        JobError: there is no such device here.
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
        """Readies a `torch.nn.Module` for inference on the device. Weights stay float32; products are autocast."""
        return model.eval().requires_grad_(False).to(self.device)

    def compiled(self, function: _Callable) -> _Callable:
        """Gives `torch.compile` of a module or function where the job asks for it, else the same."""
        # Batches differ in size and length: without `dynamic`, each new shape would compile again.
        return cast(_Callable, self._torch.compile(function, dynamic=True)) if self._compile else function

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Runs what is inside without gradients, and its matrix products in the job's dtype."""
        torch = self._torch
        with torch.inference_mode():
            if self._autocast is None:
                yield
            else:
                with torch.autocast(self.device.type, dtype=self._autocast):
                    yield

    def stack(self, arrays: Sequence[np.ndarray]) -> Any:
        """Stacks equal arrays on the device, through pinned memory where that is a GPU.

        Each is copied once on the host. A pinned block is not handed out again before its copy is done: torch's
        caching host allocator watches the stream.
        """
        torch = self._torch
        if not self.on_cuda:
            return torch.from_numpy(np.stack(arrays))
        kind = torch.from_numpy(arrays[0][:0]).dtype
        pinned = torch.empty((len(arrays), *arrays[0].shape), dtype=kind, pin_memory=True)
        np.stack(arrays, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)

    def send(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Copies CPU tensors to the device, without waiting for the copies on a GPU."""
        if not self.on_cuda:
            return dict(tensors)
        return {name: t.pin_memory().to(self.device, non_blocking=True) for name, t in tensors.items()}

    def fetch(self, tensor: Any) -> np.ndarray:
        """Gives a result as float32 in host memory."""
        return cast(np.ndarray, tensor.float().cpu().numpy())


def _device(key: str, wanted: str) -> Any:
    """Finds the device.

    Raises:
        JobError: there is no such device here.
    """
    import torch

    count = _cuda_devices() if wanted != "cpu" else 0
    if wanted == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if wanted != "cpu" and int(wanted.partition(":")[2] or 0) >= count:
        raise JobError(f"{key}.device: got {wanted}, with {count} CUDA devices here; write auto or cpu")
    return torch.device(wanted)


@functools.cache
def _cuda_devices() -> int:
    """Counts GPUs once for the process: its encoders all get the same answer, also where one is lost later."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
