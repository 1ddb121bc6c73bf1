"""Finds a CLAP checkpoint, reads everything about it except its weights, and loads one of its towers.

Importing this file imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints import local
from unisono.transforms.encoders.checkpoints.loading import load_model, loading
from unisono.transforms.encoders.clap.features import Recipe, read_recipe
from unisono.transforms.encoders.torch_runtime import read_string

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class Checkpoint(NamedTuple):
    """What the files of a checkpoint say, except the weights.

    Attributes:
        directory: where the files are.
        weights: the safetensors files.
        recipe: how the audio tower's features are made.
        dim: the length of an embedding.
    """

    directory: Path
    weights: tuple[Path, ...]
    recipe: Recipe
    dim: int

    @property
    def tokenizer_files(self) -> list[Path]:
        """The files of the tokenizer that exist."""
        return [path for name in _TOKENIZER_FILES if (path := self.directory / name).is_file()]


def read_checkpoint(spec: EncoderSpec) -> Checkpoint:
    """Finds and reads the checkpoint that a job names: `clap/<hub id>`, `clap/<directory>`, or these without `clap/`.

    Raises:
        JobError: there is no such checkpoint, or a file of it is missing or wrong.
    """
    key = f"{spec.key}.model"
    root = local.find_directory(spec, read_string(spec, "revision"), where=spec.model.removeprefix("clap/"))
    config = local.read_json(key, root / "config.json")
    if config.get("model_type") != "clap":
        raise JobError(f"{key}: {root / 'config.json'} has model_type {config.get('model_type')!r}; allowed: clap")
    recipe = read_recipe(key, root)
    weights = tuple(local.weight_files(key, root))
    return Checkpoint(root, weights, recipe, int(config.get("projection_dim", 512)))


def load_tower(key: str, directory: Path, modality: str) -> Any:
    """Loads the `audio` or `text` tower with its projection. The weights of the other tower are not read.

    Args:
        key: the job-file key that the error messages name.
        directory: the checkpoint's directory.
        modality: `audio` or `text`.

    Raises:
        JobError: the weights do not fit the configuration.
    """
    import transformers

    audio = modality == "audio"
    tower: Any = transformers.ClapAudioModelWithProjection if audio else transformers.ClapTextModelWithProjection
    with loading(key, str(directory)):
        whole = transformers.ClapConfig.from_pretrained(directory, local_files_only=True)
    return load_model(key, directory, tower, config=whole.audio_config if audio else whole.text_config)
