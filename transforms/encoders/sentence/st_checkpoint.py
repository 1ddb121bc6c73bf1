"""Reads everything about a checkpoint of sentence-transformers except its weights, for the family `st`.

Importing this file does not import sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.modalities import JOINT
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints.formats import FETCHED, matches
from unisono.transforms.encoders.checkpoints.local import pickled_files, read_json, read_json_list, weight_files


def _modules(key: str, root: Path) -> list[dict[str, Any]]:
    return read_json_list(key, root / "modules.json") if (root / "modules.json").is_file() else []


def check_files(key: str, root: Path) -> None:
    """Checks that a checkpoint's weights are complete, and that using it runs no code of its own.

    Args:
        key: the job-file key that the error messages name.
        root: the checkpoint's directory.

    Raises:
        JobError: a module is code of the checkpoint's own, or weights are missing, incomplete or pickled.
    """
    modules = _modules(key, root)
    for module in modules:
        if not str(module.get("type", "")).startswith("sentence_transformers."):
            kind = module.get("type")
            raise JobError(f"{key}: module {kind} in {root} is the checkpoint's own code, which is never run")
    for folder in sorted({root, *(root / str(m.get("path", "")) for m in modules)}):
        if stems := {p.name.partition(".safetensors")[0] for p in folder.glob("*.safetensors*")}:
            for stem in stems:
                if "-of-" not in stem:  # else the file is one of several, and an index names it
                    weight_files(key, folder, stem)
        elif folder.is_dir() and (pickled := pickled_files(folder)):
            raise JobError(
                f"{key}: {folder} holds {pickled[0]} but no safetensors, and only those are read: where you "
                "trust the file, load it and save it again with SentenceTransformer.save_pretrained"
            )
    if not any(root.rglob("*.safetensors")):
        raise JobError(f"{key}: no safetensors under {root}; save it with SentenceTransformer.save_pretrained")


def stated_dim(key: str, root: Path) -> int | None:
    """Finds the length of an embedding in the checkpoint's files. None means that no file states it.

    Args:
        key: the job-file key that the error messages name.
        root: the checkpoint's directory.

    Raises:
        JobError: a file holds no JSON.
    """
    path = root / "config_sentence_transformers.json"
    if path.is_file() and (cut := read_json(key, path).get("truncate_dim")):
        return int(cut)
    for module in reversed(_modules(key, root)):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        config = root / str(module.get("path", "")) / "config.json"
        if kind in ("Normalize", "Dropout", "LayerNorm") or not config.is_file():  # they keep the length
            continue
        return _dim_of_module(kind, read_json(key, config))
    return None


def _dim_of_module(kind: str, config: dict[str, Any]) -> int | None:
    """Reads the length of a module's output from its `config.json`. None means that it does not state it."""
    if kind == "Dense":
        return int(config["out_features"])
    if kind == "Pooling":
        width = int(config.get("embedding_dimension") or config.get("word_embedding_dimension") or 0)
        modes = config.get("pooling_mode")  # since version 6; earlier versions have one switch for each mode
        if modes is None:
            modes = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True] or [""]
        return width * (1 if isinstance(modes, str) else len(modes)) or None
    if kind in ("CLIPModel", "Transformer") and "projection_dim" in config:  # both towers of a CLIP end in it
        return int(config["projection_dim"])
    return None


def stated_modalities(key: str, root: Path) -> list[str]:
    """Lists the modalities that the first module says it takes. An empty list means that it does not say.

    An entry such as `image+text` means one input of both.

    Args:
        key: the job-file key that the error messages name.
        root: the checkpoint's directory.

    Raises:
        JobError: a file holds no JSON.
    """
    first = next((str(m.get("path", "")) for m in _modules(key, root)), "")
    path = root / first / "sentence_bert_config.json"
    return list(read_json(key, path).get("modality_config") or ()) if path.is_file() else []


def check_modalities(spec: EncoderSpec, parts: Iterable[str], taken: list[str]) -> None:
    """Checks that a model takes the modality of a spec. For `joint`, it must take all parts in one input.

    Args:
        spec: the encoder's spec.
        parts: the parts of a joint input.
        taken: the modalities that the model takes, in the form that `stated_modalities` returns. An empty list means
            that they are not known; then the check passes.

    Raises:
        JobError: the model does not take such inputs.
    """
    if not taken:
        return
    wanted = tuple(parts) if spec.modality == JOINT else (spec.modality,)
    whole = {frozenset(t.split("+")) for t in taken}
    if frozenset(wanted) in whole or ("message" in taken and all(w in taken for w in wanted)):
        return
    raise JobError(
        f"{spec.key}.model: {spec.model!r} does not take {' + '.join(wanted)} in one input; "
        f"it takes {', '.join(t for t in taken if t != 'message')}"
        + ("" if "message" in taken else ", each alone; choose an omni-modal model" if len(wanted) > 1 else "")
    )


def model_files(root: Path) -> list[Path]:
    """Lists the files that an encoder's output may depend on: weights, configurations, tokenizers and templates."""
    return sorted(p for p in root.rglob("*") if matches(p.name, FETCHED) and not _is_beside(p.relative_to(root)))


def _is_beside(path: Path) -> bool:
    """Says whether a file belongs to another runtime (ONNX, OpenVINO) or to the cache of the download."""
    return path.parts[0] in ("onnx", "openvino") or any(part.startswith(".") for part in path.parts)
