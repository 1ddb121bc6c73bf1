"""Text encoders from Hugging Face checkpoints, run by transformers and torch.

What follows the transformer (pooling, dense layers, normalisation), the prompt and the longest input are read
from the checkpoint's own sentence-transformers files. A plain transformers checkpoint has none: its tokens
are averaged.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders import torch_runtime
from unisono.transforms.encoders.base import Encoder, EncoderSpec
from unisono.transforms.encoders.checkpoints import local as files
from unisono.transforms.encoders.registry import EncoderInfo
from unisono.transforms.encoders.sentence.files import (
    ENCODER_HALVES,
    Checkpoint,
    Dense,
    Pooling,
    content_id,
    read_checkpoint,
)
from unisono.transforms.encoders.torch_runtime import TorchRuntime, TorchSettings
from unisono.transforms.media.text import clean_text

OPTIONS = ("batch_tokens", "prompt", "query_prompt", "revision")
# Tokens of one forward batch. A processor is fastest while a batch's activations stay in its caches: with MiniLM two
# cores take 1.3 times as long in batches of 4,096 (docs/performance.md). A GPU wants enough to fill it.
CPU_TOKENS, CUDA_TOKENS = 1024, 32_768
# Of one `encode`, at least. Texts come sorted by letters, which tell their tokens to a factor of two only; sorted
# again by true tokens, this many at once leave next to no padding.
TOKENS_AT_ONCE = 65_536
FALLBACK_MAX_TOKENS = 512  # where neither the checkpoint's files nor its tokenizer state a maximum


class Settings(NamedTuple):
    """The options of a spec, checked. `prompt` goes before the catalogue's texts, `query_prompt` before a query."""

    torch: TorchSettings
    revision: str | None
    prompt: str | None
    query_prompt: str | None
    batch_tokens: int | None


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks libraries, options and the checkpoint's files, and tells id and dimension; only hashes weights.

    Raises:
        JobError: any of them is missing or wrong.
    """
    settings, found = _read(spec)
    return EncoderInfo(_encoder_id(found, settings), found.dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads tokenizer and model onto the device.

    Raises:
        JobError: as `describe`, or the weights do not fit the configuration, or there is no such device.
    """
    return TransformersTextEncoder(spec, *_read(spec))


def _read(spec: EncoderSpec) -> tuple[Settings, Checkpoint]:
    settings = read_settings(spec)
    files.require(spec, "torch", "transformers")
    root = files.find_directory(spec, settings.revision)
    return settings, read_checkpoint(f"{spec.key}.model", root, settings.prompt, settings.query_prompt)


def _encoder_id(found: Checkpoint, settings: Settings) -> str:
    # `recipe` is this file's: raise it with any change of the output.
    return f"transformers-{content_id(found, recipe='1', **settings.torch.facts)}"


def read_settings(spec: EncoderSpec) -> Settings:
    """Checks the options of a spec.

    Raises:
        JobError: an unknown option or value.
    """
    torch_settings = torch_runtime.read_settings(spec, OPTIONS)
    options = dict(spec.options)
    batch_tokens = torch_runtime.read_whole(spec, "batch_tokens", None)
    for name in ("prompt", "query_prompt", "revision"):
        if not isinstance(options.get(name, ""), str):
            raise JobError(f"{spec.key}.{name}: got {options[name]!r}; allowed: a string")
    prompts = options.get("prompt"), options.get("query_prompt")
    return Settings(torch_settings, options.get("revision"), *prompts, batch_tokens)


# --- running it --------------------------------------------------------------------------------------------


class TransformersTextEncoder:
    """A transformer, its tokenizer, and the steps from token vectors to an embedding.

    Embeddings do not depend on the rest of the batch but for the rounding of its matrix products (about
    1e-6).
    """

    def __init__(self, spec: EncoderSpec, settings: Settings, found: Checkpoint) -> None:
        import torch

        key = f"{spec.key}.model"
        self.encoder_id = _encoder_id(found, settings)
        self.dim = found.dim
        self._torch = torch
        self._steps = found.steps
        self._prompt = found.prompt
        self._runtime = TorchRuntime(spec, settings.torch)
        self._batch_tokens = settings.batch_tokens or (CUDA_TOKENS if self._runtime.on_cuda else CPU_TOKENS)
        self.batch_cost = max(TOKENS_AT_ONCE, 4 * self._batch_tokens)
        self._lower_case = found.lower_case
        model = self._runtime.place(_load_model(key, found.directory))
        self._model = self._runtime.compiled(model)
        self._inputs = set(inspect.signature(model.forward).parameters)
        self._tokenizer = _load_tokenizer(key, found.directory)
        self._max_tokens = _max_tokens(found, self._tokenizer, model)
        self._dense = [self._load_dense(key, step) for step in found.steps if isinstance(step, Dense)]
        self._prompt_tokens = self._count_prompt()
        same = found.query_prompt == found.prompt
        self.text_tower = None if same else self._with_prompt(found.query_prompt)

    def prepare(self, raw: str) -> str:
        """Strips one text. Tokens are made in `encode`: a tokenizer serves one thread at a time.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return clean_text(raw)

    def cost(self, prepared: str) -> int:
        """Estimates the tokens: a quarter for an ASCII letter, a whole one for a Chinese character."""
        letters = len(self._prompt) + len(prepared)
        wider = len(self._prompt.encode()) + len(prepared.encode()) - letters  # 2 bytes for a Chinese character
        return min(self._max_tokens, 2 + (2 * letters + 3 * wider) // 8)

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]. Texts past the checkpoint's maximum are cut there."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        ids = self._tokenize([self._prompt + text for text in batch])
        lengths = np.array([len(of_text) for of_text in ids["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        cuts = _forward_batches(lengths[order], self._batch_tokens)
        # Fetched once, at the end: on a GPU the next batch is padded and sent while this one is computed.
        parts = [self._forward({n: [of_text[i] for i in order[a:b]] for n, of_text in ids.items()}) for a, b in cuts]
        out = np.empty((len(batch), self.dim), np.float32)
        out[order] = self._runtime.fetch(self._torch.cat(parts))
        return out

    def _forward(self, ids: dict[str, list[list[int]]]) -> Any:
        torch = self._torch
        tokens = self._runtime.send(dict(self._tokenizer.pad(ids, return_tensors="pt")))
        inputs = {name: values for name, values in tokens.items() if name in self._inputs}
        with torch.inference_mode():
            with self._runtime.inference():
                vectors = self._model(**inputs).last_hidden_state.float()
            dense = iter(self._dense)
            for step in self._steps:
                if isinstance(step, Pooling):
                    vectors = self._pool(vectors, tokens["attention_mask"], step)
                elif isinstance(step, Dense):
                    vectors = next(dense)(vectors)
                else:
                    vectors = torch.nn.functional.normalize(vectors, p=2, dim=-1)
        return vectors

    def _tokenize(self, texts: list[str]) -> dict[str, list[list[int]]]:
        if self._lower_case:
            texts = [text.lower() for text in texts]
        encoded = self._tokenizer(texts, truncation=True, max_length=self._max_tokens, return_attention_mask=True)
        return dict(encoded)

    def _pool(self, vectors: Any, mask: Any, step: Pooling) -> Any:
        """Pools token vectors [n, tokens, width] under a right-padded mask, as sentence-transformers does."""
        torch = self._torch
        if not step.include_prompt and self._prompt_tokens:
            mask = mask.clone()
            mask[:, : self._prompt_tokens] = 0
        rows = torch.arange(len(vectors), device=vectors.device)
        weights = mask.unsqueeze(-1).to(vectors.dtype)
        total, count = (vectors * weights).sum(1), weights.sum(1).clamp(min=1e-9)
        parts = []
        for mode in step.modes:
            if mode == "cls":
                parts.append(vectors[rows, mask.argmax(1)])
            elif mode == "max":
                parts.append(vectors.masked_fill(weights == 0, float("-inf")).max(1).values)
            elif mode == "mean":
                parts.append(total / count)
            elif mode == "mean_sqrt_len_tokens":
                parts.append(total / count.sqrt())
            elif mode == "weightedmean":
                ranks = torch.arange(1, vectors.shape[1] + 1, device=vectors.device).view(1, -1, 1) * weights
                parts.append((vectors * ranks).sum(1) / ranks.sum(1).clamp(min=1e-9))
            else:  # lasttoken
                last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
                parts.append(vectors[rows, last])
        return torch.cat(parts, dim=-1)

    def _with_prompt(self, prompt: str) -> TransformersTextEncoder:
        """Gives an encoder that shares this one's model and puts another prompt before its texts."""
        other = copy.copy(self)
        other._prompt = prompt
        other._prompt_tokens = other._count_prompt()
        return other

    def _count_prompt(self) -> int:
        """Counts the prompt's tokens, which a Pooling may leave out; a closing token is not the prompt's."""
        if not self._prompt:
            return 0
        ids = self._tokenize([self._prompt])["input_ids"][0]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)

    def _load_dense(self, key: str, step: Dense) -> Any:
        from safetensors.torch import load_file

        torch = self._torch
        tensors = load_file(step.weights)
        weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
        if weight is None or weight.shape[0] != step.out_features:
            raise JobError(f"{key}: {step.weights} does not hold a linear.weight of {step.out_features} rows")
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({n.removeprefix("linear."): t.float() for n, t in tensors.items()})
        return torch.nn.Sequential(layer, getattr(torch.nn, step.activation)()).to(self._runtime.device).eval()


def _forward_batches(lengths: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Cuts ascending token counts into runs [start, end) of at most `budget` tokens with their padding."""
    start = 0
    while start < len(lengths):
        sizes = lengths[start:] * np.arange(1, len(lengths) - start + 1)
        end = start + max(1, int(np.searchsorted(sizes, budget, side="right")))
        yield start, end
        start = end


def _load_model(key: str, directory: Path) -> Any:
    """Loads a transformer, and checks that every weight is in the file: transformers fills gaps at random."""
    import transformers

    try:
        with quiet(transformers):
            kind = files.read_json(key, directory / "config.json")["model_type"]
            model_class = getattr(transformers, ENCODER_HALVES.get(kind, "AutoModel"))
            model, report = model_class.from_pretrained(
                directory, dtype="float32", use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise JobError(f"{key}: {directory} cannot be loaded ({files.first_line(error)})") from error
    # A BERT's pooler is for its next-sentence task: many checkpoints lack it, and nothing here reads it.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise JobError(f"{key}: the weights in {directory} lack {missing[0]}{more}; copy them whole")
    return model.eval()


def _load_tokenizer(key: str, directory: Path) -> Any:
    import transformers

    try:
        with quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = files.first_line(error)
        raise JobError(f"{key}: the tokenizer in {directory} cannot be loaded ({why})") from error
    if tokenizer.pad_token is None:  # decoders often have none; what is padded is masked
        if tokenizer.eos_token is None:
            raise JobError(f"{key}: the tokenizer in {directory} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    # On the right, so that a text's positions do not depend on the longest of its batch.
    tokenizer.padding_side = "right"
    return tokenizer


def _max_tokens(found: Checkpoint, tokenizer: Any, model: Any) -> int:
    """Finds the longest input: what the checkpoint states, never more than the model's positions."""
    limits = [found.max_tokens] if found.max_tokens else []
    if tokenizer.model_max_length < 10**9:  # where nothing is stated, transformers has 10**30 here
        limits.append(tokenizer.model_max_length)
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if positions is not None and hasattr(positions, "num_embeddings"):
        # RoBERTa's kind counts positions from behind the padding index.
        padding = getattr(positions, "padding_idx", None)
        limits.append(positions.num_embeddings - (0 if padding is None else padding + 1))
    elif getattr(model.config, "max_position_embeddings", -1) > 0:
        limits.append(model.config.max_position_embeddings)
    return min(limits) if limits else FALLBACK_MAX_TOKENS


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Keeps the library's progress bars and reports off the terminal while a checkpoint loads."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
