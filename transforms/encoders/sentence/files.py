"""What a sentence-embedding checkpoint's files say, short of its weights: the formats of transformers and
sentence-transformers (before and since its version 6). Imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.checkpoints import local as files

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"
)  # fmt: skip
_TOKENIZER_FILES = (
    *_VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip
_WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # where sentence-transformers' `encode_document` looks
_QUERY_PROMPTS = ("query",)  # and its `encode_query`
# Encoder-decoders of which the encoder half gives the embedding, as in sentence-transformers.
ENCODER_HALVES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}

# Names of sentence-transformers' pooling switches before its version 6, in the order in which parts are
# joined.
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(NamedTuple):
    """Token vectors to one vector: `modes` of `POOLINGS`, joined."""

    modes: tuple[str, ...]
    include_prompt: bool = True


class Dense(NamedTuple):
    """A linear layer with an activation, from `weights`."""

    weights: Path
    out_features: int
    activation: str


class Normalize(NamedTuple):
    """To unit L2 norm."""


Step = Pooling | Dense | Normalize


class Checkpoint(NamedTuple):
    """What a checkpoint's files say, short of its weights.

    Attributes:
        directory: of the transformer itself.
        weights: safetensors files of the transformer.
        steps: what follows it, in order; the first is its pooling.
        max_tokens: stated by its sentence-transformers files.
        lower_case: texts are lowered first.
        prompt: put before every text of the catalogue.
        dim: of the embedding.
        query_prompt: put before a query.
    """

    directory: Path
    weights: tuple[Path, ...]
    steps: tuple[Step, ...]
    max_tokens: int | None
    lower_case: bool
    prompt: str
    dim: int
    query_prompt: str = ""


def read_checkpoint(
    key: str, root: Path, prompt: str | None = None, query_prompt: str | None = None
) -> Checkpoint:
    """Reads a checkpoint's configuration files, and checks that its weights are whole.

    Args:
        key: the job-file key that a message names.
        root: the checkpoint's directory.
        prompt, query_prompt: one of the checkpoint's prompts by name, or a text of its own. None: as the
            checkpoint says.

    Raises:
        JobError: a file is missing or wrong, or asks for what is not supported.
    """
    modules = files.read_json_list(key, root / "modules.json") if (root / "modules.json").is_file() else []
    kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
    if modules and (kinds[0] != "Transformer" or "Pooling" not in kinds[1:]):
        raise JobError(
            f"{key}: {root / 'modules.json'} lists {', '.join(kinds)}; only a Transformer, a Pooling, "
            "then Dense and Normalize are supported"
        )
    directory = root / modules[0].get("path", "") if modules else root
    config = files.read_json(key, directory / "config.json")
    _check_config(key, directory, config)
    width = next((int(config[k]) for k in _WIDTH_KEYS if k in config), 0)
    if not width:
        raise JobError(f"{key}: {directory / 'config.json'} states no hidden_size; choose a text encoder")
    weights = tuple(files.weight_files(key, directory))
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise JobError(f"{key}: no tokenizer.json in {directory}; save it with tokenizer.save_pretrained")
    steps: list[Step] = []
    for module, kind in zip(modules[1:], kinds[1:], strict=True):
        steps += _read_step(key, root / module.get("path", ""), kind)
    steps = steps or [Pooling(("mean",))]
    if not isinstance(steps[0], Pooling) or sum(isinstance(s, Pooling) for s in steps) != 1:
        raise JobError(f"{key}: {root / 'modules.json'} must have one Pooling, right after the Transformer")
    dim = width * len(steps[0].modes)
    for step in steps:
        if isinstance(step, Dense):
            dim = step.out_features
    sentence = directory / "sentence_bert_config.json"
    stated = files.read_json(key, sentence) if sentence.is_file() else {}
    max_tokens = stated.get("max_seq_length")
    return Checkpoint(
        directory,
        weights,
        tuple(steps),
        int(max_tokens) if max_tokens else None,
        bool(stated.get("do_lower_case", False)),
        _read_prompt(key, root, prompt, _DOCUMENT_PROMPTS),
        dim,
        _read_prompt(key, root, query_prompt, _QUERY_PROMPTS),
    )


def _check_config(key: str, directory: Path, config: dict[str, Any]) -> None:
    """Refuses models that need code of their own, or have a decoder."""
    kind = config.get("model_type")
    if kind is None:
        raise JobError(f"{key}: {directory / 'config.json'} has no model_type; save it with save_pretrained")
    if "auto_map" in config:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if kind not in CONFIG_MAPPING_NAMES:
            raise JobError(f"{key}: {kind!r} in {directory} needs code of its own, which is never run")
    if config.get("is_encoder_decoder") and kind not in ENCODER_HALVES:
        raise JobError(f"{key}: {kind!r} in {directory} is an encoder-decoder; only T5's are supported")


def _read_step(key: str, directory: Path, kind: str) -> list[Step]:
    """Reads one sentence-transformers module; [] for one that does nothing when encoding."""
    if kind == "Normalize":
        return [Normalize()]
    if kind == "Dropout":
        return []
    if kind not in ("Pooling", "Dense"):
        raise JobError(f"{key}: module {kind} in {directory}; allowed: Pooling, Dense, Normalize")
    config = files.read_json(key, directory / "config.json")
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
            f"{key}: {directory} has activation {activation}, a residual or an input of its own; "
            f"a Dense may have an activation of {', '.join(ACTIVATIONS)}"
        )
    return [Dense(files.weight_files(key, directory)[0], int(config["out_features"]), activation)]


def _read_prompt(key: str, root: Path, wanted: str | None, kinds: tuple[str, ...]) -> str:
    """Finds the prompt of a document or query: what the job names or spells out, else the checkpoint's own."""
    path = root / "config_sentence_transformers.json"
    stated = files.read_json(key, path) if path.is_file() else {}
    prompts = {name: text for name, text in (stated.get("prompts") or {}).items() if text is not None}
    if wanted is not None:
        return str(prompts.get(wanted, wanted))
    names = (*kinds, stated.get("default_prompt_name"))
    return str(next((prompts[name] for name in names if name in prompts), ""))


def content_id(found: Checkpoint, **settings: str) -> str:
    """Hashes all that an embedding depends on, wherever it lies: weights, tokenizer, steps, `settings`."""
    tokenizer = [found.directory / name for name in _TOKENIZER_FILES]
    dense = [step.weights for step in found.steps if isinstance(step, Dense)]
    # A path says where a file is, not what is in it.
    steps = [[type(s).__name__, *(v for v in s if not isinstance(v, Path))] for s in found.steps]
    facts = {
        "steps": steps,
        "max_tokens": found.max_tokens,
        "lower_case": found.lower_case,
        "prompt": found.prompt,
        **settings,
    }
    parts = [found.directory / "config.json", *found.weights, *(f for f in tokenizer if f.is_file()), *dense]
    return files.content_hash(parts, facts)
