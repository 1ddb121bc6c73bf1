"""Reads everything about a text checkpoint except its weights.

The formats are those of transformers and of sentence-transformers, before and since its version 6. Importing this file
imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints import local

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"
)  # fmt: skip
_TOKENIZER_FILES = (
    *_VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip
_WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
# Names of prompts that sentence-transformers' `encode_document` and `encode_query` look for, in this order.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_QUERY_PROMPTS = ("query",)
# For encoder-decoders, only the encoder makes the embedding, as in sentence-transformers: class by model type.
ENCODER_HALVES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}

# The pooling switches of sentence-transformers before version 6, in the order in which their results are joined.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(NamedTuple):
    """Turns token vectors into one vector.

    Attributes:
        modes: one or more of `POOLINGS`; the results are concatenated.
        include_prompt: whether the tokens of the prompt take part.
    """

    modes: tuple[str, ...]
    include_prompt: bool = True


class Dense(NamedTuple):
    """Applies a linear layer and an activation.

    Attributes:
        weights: the safetensors file of the layer.
        out_features: the length of its output.
        activation: one of `ACTIVATIONS`.
    """

    weights: Path
    out_features: int
    activation: str


class Normalize(NamedTuple):
    """Scales to unit L2 norm."""


Step = Pooling | Dense | Normalize


class Checkpoint(NamedTuple):
    """What the files of a checkpoint say, except the weights.

    Attributes:
        directory: the directory of the transformer itself.
        weights: the safetensors files of the transformer.
        steps: the steps after the transformer, in order. The first is the pooling.
        max_tokens: the longest input that the sentence-transformers files state. None means that they state none.
        lower_case: whether texts are changed to lower case first.
        prompt: the text that is put before every text of the catalogue.
        dim: the length of an embedding.
        query_prompt: the text that is put before every query.
    """

    directory: Path
    weights: tuple[Path, ...]
    steps: tuple[Step, ...]
    max_tokens: int | None
    lower_case: bool
    prompt: str
    dim: int
    query_prompt: str = ""


def read_checkpoint(key: str, root: Path, prompt: str | None = None, query_prompt: str | None = None) -> Checkpoint:
    """Reads a checkpoint's configuration files, and checks that its weights are complete.

    Args:
        key: the job-file key that the error messages name.
        root: the checkpoint's directory.
        prompt: the prompt for texts of the catalogue: the name of one of the checkpoint's prompts, or a text. None
            means the checkpoint's own choice.
        query_prompt: the prompt for queries, in the same form.

    Raises:
        JobError: a file is missing or wrong, or asks for something that is not supported.
    """
    path = root / "modules.json"
    modules = local.read_json_list(key, path) if path.is_file() else []
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    if modules and (kinds[0] != "Transformer" or "Pooling" not in kinds[1:]):
        raise JobError(
            f"{key}: {path} lists {', '.join(kinds)}; only a Transformer, a Pooling, "
            "then Dense and Normalize are supported"
        )
    directory = root / modules[0].get("path", "") if modules else root
    width = _read_width(key, directory)
    weights = tuple(local.weight_files(key, directory))
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise JobError(f"{key}: no tokenizer.json in {directory}; save it with tokenizer.save_pretrained")
    pooling, *others = _read_steps(key, root, modules[1:], kinds[1:])
    if not isinstance(pooling, Pooling) or any(isinstance(s, Pooling) for s in others):
        raise JobError(f"{key}: {path} must have one Pooling, right after the Transformer")
    dense = [step.out_features for step in others if isinstance(step, Dense)]
    sentence = directory / "sentence_bert_config.json"
    stated = local.read_json(key, sentence) if sentence.is_file() else {}
    max_tokens = stated.get("max_seq_length")
    return Checkpoint(
        directory=directory,
        weights=weights,
        steps=(pooling, *others),
        max_tokens=int(max_tokens) if max_tokens else None,
        lower_case=bool(stated.get("do_lower_case", False)),
        prompt=_read_prompt(key, root, prompt, _DOCUMENT_PROMPTS),
        dim=dense[-1] if dense else width * len(pooling.modes),
        query_prompt=_read_prompt(key, root, query_prompt, _QUERY_PROMPTS),
    )


def _read_width(key: str, directory: Path) -> int:
    """Reads the width of a transformer's token vectors from its configuration.

    Raises:
        JobError: the model is not supported, or its configuration states no width.
    """
    config = local.read_json(key, directory / "config.json")
    _check_config(key, directory, config)
    width = next((int(config[k]) for k in _WIDTH_KEYS if k in config), 0)
    if not width:
        raise JobError(f"{key}: {directory / 'config.json'} states no hidden_size; choose a text encoder")
    return width


def _read_steps(key: str, root: Path, modules: list[Any], kinds: list[str]) -> list[Step]:
    """Reads the modules that follow the transformer. If there are none, token vectors are averaged.

    Raises:
        JobError: a module is not supported.
    """
    steps: list[Step] = []
    for module, kind in zip(modules, kinds, strict=True):
        steps += _read_step(key, root / module.get("path", ""), kind)
    return steps or [Pooling(("mean",))]


def _check_config(key: str, directory: Path, config: dict[str, Any]) -> None:
    """Checks that a model needs no code of its own and has no decoder.

    Raises:
        JobError: the model needs its own code or has a decoder, or its configuration states no type of model.
    """
    kind = config.get("model_type")
    if kind is None:
        raise JobError(f"{key}: {directory / 'config.json'} has no model_type; save it with save_pretrained")
    if "auto_map" in config:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise JobError(f"{key}: {kind!r} in {directory} needs the checkpoint's own code, which is never run")
    if config.get("is_encoder_decoder") and kind not in ENCODER_HALVES:
        raise JobError(f"{key}: {kind!r} in {directory} is an encoder-decoder; of these only T5 models are supported")


def _read_step(key: str, directory: Path, kind: str) -> list[Step]:
    """Reads one module of sentence-transformers. A module that does nothing outside of training returns no step.

    Raises:
        JobError: the module, or a setting of it, is not supported.
    """
    if kind == "Normalize":
        return [Normalize()]
    if kind == "Dropout":
        return []
    if kind not in ("Pooling", "Dense"):
        raise JobError(f"{key}: module {kind} in {directory}; allowed: Pooling, Dense, Normalize")
    config = local.read_json(key, directory / "config.json")
    if kind == "Pooling":
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for name, mode in _OLD_POOLING_KEYS.items() if config.get(name)] or ["mean"]
        modes = (modes,) if isinstance(modes, str) else tuple(modes)
        unknown = [mode for mode in modes if mode not in POOLINGS]
        if unknown:
            raise JobError(f"{key}: pooling {unknown[0]!r} in {directory}; allowed: {', '.join(POOLINGS)}")
        return [Pooling(modes, bool(config.get("include_prompt", True)))]
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    plain = config.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    if activation not in ACTIVATIONS or config.get("use_residual") or not plain:
        raise JobError(
            f"{key}: {directory} has activation {activation}, a residual connection or another input; "
            f"a Dense may only have an activation, one of {', '.join(ACTIVATIONS)}"
        )
    return [Dense(local.weight_files(key, directory)[0], int(config["out_features"]), activation)]


def _read_prompt(key: str, root: Path, wanted: str | None, kinds: tuple[str, ...]) -> str:
    """Finds a prompt.

    Args:
        key: the job-file key that the error messages name.
        root: the checkpoint's directory.
        wanted: the name of one of the checkpoint's prompts, or a text. None means the checkpoint's own choice.
        kinds: names of prompts that the checkpoint may choose, the preferred first. Its default prompt comes last.
    """
    path = root / "config_sentence_transformers.json"
    stated = local.read_json(key, path) if path.is_file() else {}
    prompts = {name: text for name, text in (stated.get("prompts") or {}).items() if text is not None}
    if wanted is not None:
        return str(prompts.get(wanted, wanted))
    names = (*kinds, stated.get("default_prompt_name"))
    return str(next((prompts[name] for name in names if name in prompts), ""))


def content_id(found: Checkpoint, **settings: str) -> str:
    """Hashes everything that an embedding depends on: weights, tokenizer, configuration, steps and `settings`.

    Returns:
        16 hexadecimal digits.
    """
    tokenizer = [found.directory / name for name in _TOKENIZER_FILES]
    dense = [step.weights for step in found.steps if isinstance(step, Dense)]
    # The place of a file does not change the output.
    steps = [[type(s).__name__, *(v for v in s if not isinstance(v, Path))] for s in found.steps]
    facts = {
        "steps": steps,
        "max_tokens": found.max_tokens,
        "lower_case": found.lower_case,
        "prompt": found.prompt,
        **settings,
    }
    parts = [found.directory / "config.json", *found.weights, *(f for f in tokenizer if f.is_file()), *dense]
    return local.content_hash(parts, facts)
