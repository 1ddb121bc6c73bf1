"""Which files of a checkpoint are fetched and trusted."""

from __future__ import annotations

FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja")

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def first_line(error: BaseException) -> str:
    """Gives an exception's first line of text."""
    return next(iter(str(error).strip().splitlines()), "")
