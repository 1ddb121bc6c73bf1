"""Finds an open_clip checkpoint and reads everything about it except its weights.

Importing this file imports neither torch nor open_clip. open_clip is imported only to look up a tag of weights.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints import local
from unisono.transforms.encoders.checkpoints.formats import first_line
from unisono.transforms.encoders.torch_runtime import read_string

CONFIG = "open_clip_config.json"
# Names of weight files without the suffix, in the order in which open_clip looks for them.
_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model")
_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_REMEDY = (
    "where you trust them, save them with "
    "safetensors.torch.save_file(model.state_dict(), 'open_clip_model.safetensors')"
)
# Keys of a tower's configuration that only say where its first weights came from.
_ORIGIN = ("hf_model_pretrained", "timm_model_pretrained")
# Keys of a tower's configuration that an architecture named in the job must share with the checkpoint.
_SHAPE = ("layers", "width", "patch_size", "image_size", "timm_model_name", "hf_model_name", "context_length")


class Preprocess(NamedTuple):
    """How a picture becomes a tensor. The defaults are those of open_clip's `PreprocessCfg`.

    Attributes:
        size: (height, width) in pixels.
        mean: the mean of each channel, on the scale 0 … 1.
        std: the standard deviation of each channel, on the same scale.
        interpolation: `bicubic` or `bilinear`.
        resize_mode: the `mode` of `unisono.transforms.media.fit.fit_picture`.
        fill: grey level of the padding, 0 … 255.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0


class Checkpoint(NamedTuple):
    """What the files of a checkpoint say, except the weights.

    Attributes:
        weights: the safetensors file.
        model: open_clip's `model_cfg`, with keys such as embed_dim, vision_cfg and text_cfg.
        preprocess: how pictures become tensors.
        tokenizer: the argument of open_clip's `get_tokenizer`.
        tokenizer_files: the files of the tokenizer, if the checkpoint's directory holds one of its own.
    """

    weights: Path
    model: dict[str, Any]
    preprocess: Preprocess
    tokenizer: str
    tokenizer_files: tuple[Path, ...] = ()

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.model["embed_dim"])

    def facts(self, tower: str) -> dict[str, Any]:
        """Returns what the output of the `vision` or `text` tower depends on, in a form that JSON can hold."""
        config = {k: v for k, v in self.model[f"{tower}_cfg"].items() if k not in _ORIGIN}
        shared = {k: self.model.get(k) for k in ("embed_dim", "quick_gelu", "custom_text", "multimodal_cfg")}
        # Files count by their content: neither a file's name nor its place changes the output.
        facts: dict[str, Any] = {"weights": local.sha256_of(self.weights), "tower": {**shared, **config}}
        if tower == "vision":
            facts["preprocess"] = list(self.preprocess)
        else:
            facts["tokenizer"] = {f.name: local.sha256_of(f) for f in self.tokenizer_files}
        return facts


def read_checkpoint(spec: EncoderSpec) -> Checkpoint:
    """Finds and reads the checkpoint that a job names: `open_clip/<architecture>` with `weights`, or a hub repository.

    Raises:
        JobError: the architecture or the tag is unknown, or there is no such file or directory, or the weights are not
            in safetensors.
    """
    weights, revision = read_string(spec, "weights"), read_string(spec, "revision")
    name = spec.model.partition("/")[2]
    if "/" in name:
        if weights is not None:
            raise JobError(f"{spec.key}.weights: got {weights!r}; the hub repository {name} has its own, remove it")
        return _from_directory(spec, local.find_directory(spec, revision, where=name), None, "model")
    if weights is None:
        raise JobError(
            f"{spec.key}.weights: missing; give a tag of open_clip, a safetensors file, or a local or gs:// directory"
        )
    path = Path(weights).expanduser()
    if path.is_file():
        if revision is not None:
            raise JobError(f"{spec.key}.revision: got {revision!r}; {path} is a file and has none")
        return _from_file(f"{spec.key}.weights", path, _architecture(spec, name))
    if path.is_dir() or weights.startswith("gs://"):
        found = local.find_directory(spec, revision, option="weights", where=weights)
        return _from_directory(spec, found, name or None, "weights")
    if "/" in weights or path.suffix:
        raise JobError(f"{spec.key}.weights: no file or directory {weights}; check it, or give a tag of open_clip")
    return _from_tag(spec, name, weights, revision)


# --- the places that weights come from -------------------------------------------------------------------------


def _from_file(key: str, path: Path, model: dict[str, Any], stated: Any = None, tokenizer: str = "") -> Checkpoint:
    """Makes a checkpoint of one safetensors file.

    Args:
        key: the job-file key that the error messages name.
        path: the file.
        model: open_clip's `model_cfg`.
        stated: open_clip's `preprocess_cfg`. None means open_clip's defaults.
        tokenizer: the argument of `get_tokenizer`. Empty means the tokenizer of the architecture.

    Raises:
        JobError: the file is not a complete safetensors file, or `preprocess_cfg` cannot be used.
    """
    if path.suffix != ".safetensors":
        raise JobError(f"{key}: {path} is not a safetensors file; weights are never unpickled: {_REMEDY}")
    weights = local.weight_files(key, path.parent, path.stem)[0]
    return Checkpoint(weights, model, _preprocess(key, model, stated or {}), tokenizer or str(model["name"]))


def _from_directory(spec: EncoderSpec, directory: Path, name: str | None, option: str) -> Checkpoint:
    """Reads a directory with weights and `open_clip_config.json`.

    Args:
        spec: the encoder's spec.
        directory: a local directory.
        name: the architecture that the job names. None means that the directory's configuration says it.
        option: the option that named the directory, for error messages.

    Raises:
        JobError: something is missing or wrong there.
    """
    key = f"{spec.key}.{option}"
    stems = [p.stem for p in sorted(directory.glob("*.safetensors"))]
    stem = next((s for s in _STEMS if s in stems), stems[0] if len(stems) == 1 else None)
    if stem is None:
        pickled = local.pickled_files(directory)
        if len(stems) > 1:
            what = f"holds {', '.join(stems)}; name one of them as the weights"
        elif pickled:
            what = f"holds {pickled[0]} but no safetensors; weights are never unpickled: {_REMEDY}"
        else:
            what = f"holds no {_STEMS[0]}.safetensors; point it at a directory with {CONFIG} and weights"
        raise JobError(f"{key}: {directory} {what}")
    weights = directory / f"{stem}.safetensors"
    if not (directory / CONFIG).is_file():
        if name is None:
            raise JobError(f"{key}: no file {CONFIG} in {directory}; name the architecture, as in open_clip/ViT-B-32")
        return _from_file(key, weights, _architecture(spec, name))
    whole = local.read_json(key, directory / CONFIG)
    model = whole.get("model_cfg")
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(model):
        raise JobError(f"{key}: {directory / CONFIG} has no model_cfg with embed_dim, vision_cfg and text_cfg")
    if name is not None:
        _check_same(key, name, _architecture(spec, name), model)
    found = _from_file(key, weights, model, whole.get("preprocess_cfg"), f"local-dir:{directory}")
    if not model["text_cfg"].get("hf_tokenizer_name"):
        return found
    own = tuple(directory / f for f in _TOKENIZER_FILES if (directory / f).is_file())
    return found._replace(tokenizer_files=own)


def _from_tag(spec: EncoderSpec, name: str, tag: str, revision: str | None) -> Checkpoint:
    """Fetches the weights that open_clip knows by a tag from the hub.

    Raises:
        JobError: open_clip does not know the tag, or the hub has no safetensors file for it.
    """
    key, model = f"{spec.key}.weights", _architecture(spec, name)
    import open_clip

    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise JobError(f"{key}: open_clip has no tag {tag!r} of {name}; it has: {tags}; or give a file or directory")
    if bool(config.get("quick_gelu")) != bool(model.get("quick_gelu")) and config.get("quick_gelu"):
        raise JobError(f"{key}: {tag} was trained with QuickGELU; write open_clip/{name}-quickgelu")
    repository, _, file = str(config.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise JobError(f"{key}: {tag} of {name} is only published as a pickle; weights are never unpickled: {_REMEDY}")
    file = f"{Path(file).stem}.safetensors" if file else f"{_STEMS[0]}.safetensors"
    import huggingface_hub

    try:
        path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # such as no such repository, file or revision, no network, a gated repository
        raise JobError(
            f"{key}: {file} of {repository} cannot be fetched from the hub "
            f"({type(error).__name__}: {first_line(error)}); check tag, revision and network, or give a directory"
        ) from error
    return _from_file(key, path, model, config)


# --- configurations --------------------------------------------------------------------------------------------


def _architecture(spec: EncoderSpec, name: str) -> dict[str, Any]:
    """Reads the `model_cfg` of an architecture that open_clip knows by name.

    Raises:
        JobError: open_clip does not know it.
    """
    found = importlib.util.find_spec("open_clip")
    assert found is not None
    folder = Path(next(iter(found.submodule_search_locations or []))) / "model_configs"
    path = folder / f"{name}.json"
    if not name or not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.json"))
        close = [k for k in known if name and k.lower().startswith(name.lower()[:5])] or known
        raise JobError(
            f"{spec.key}.model: {spec.model!r} is not an architecture of open_clip; others are "
            f"{', '.join(f'open_clip/{k}' for k in close[:4])} ({len(known)} in all: open_clip.list_models())"
        )
    return {**json.loads(path.read_text()), "name": name}


def _check_same(key: str, name: str, named: dict[str, Any], own: dict[str, Any]) -> None:
    """Compares the architecture that the job names with the checkpoint's own configuration.

    Raises:
        JobError: they differ.
    """
    pairs = [("embed_dim", named.get("embed_dim"), own.get("embed_dim"))]
    for tower in ("vision_cfg", "text_cfg"):
        pairs += [(f"{tower}.{k}", named[tower].get(k), own[tower].get(k)) for k in _SHAPE]
    for field, wanted, has in pairs:
        if wanted != has and not (isinstance(wanted, list | tuple) and list(wanted) == has):
            raise JobError(
                f"{key}: the checkpoint has {field} {has}, but {name} has {wanted}; name the checkpoint's architecture"
            )


def _preprocess(key: str, model: dict[str, Any], stated: dict[str, Any]) -> Preprocess:
    """Reads a `preprocess_cfg` and fills in open_clip's defaults. The size is that of the image tower.

    Raises:
        JobError: it asks for something that open_clip does not have.
    """
    size = model["vision_cfg"].get("image_size", 224)
    pair = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    known = {k: v for k, v in stated.items() if k in ("mean", "std", "interpolation", "resize_mode") and v is not None}
    for name in ("mean", "std"):
        if name in known:
            value = known[name]
            known[name] = (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))
    found = Preprocess(pair, fill=int(stated.get("fill_color") or 0), **known)
    # Outside of training, open_clip takes `random` as bicubic.
    found = found._replace(interpolation="bicubic" if found.interpolation == "random" else found.interpolation)
    if found.interpolation not in ("bicubic", "bilinear") or found.resize_mode not in ("shortest", "longest", "squash"):
        raise JobError(
            f"{key}: preprocess_cfg has interpolation {found.interpolation} and resize_mode {found.resize_mode}; "
            "allowed: bicubic, bilinear, and shortest, longest, squash"
        )
    return found
