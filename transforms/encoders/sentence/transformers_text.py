"""The family `transformers`: text encoders from Hugging Face checkpoints.

The steps after the transformer (pooling, dense layers, normalisation), the prompts and the longest input are read from
the checkpoint's sentence-transformers files. A plain transformers checkpoint has no such files; the vectors of its
tokens are averaged.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import Encoder, EncoderInfo, EncoderSpec
from unisono.transforms.encoders.checkpoints.loading import load_model, load_tokenizer
from unisono.transforms.encoders.checkpoints.local import find_directory, read_json
from unisono.transforms.encoders.sentence.checkpoint import (
    ENCODER_HALVES,
    Checkpoint,
    Dense,
    Pooling,
    content_id,
    read_checkpoint,
)
from unisono.transforms.encoders.torch_runtime import (
    TorchRuntime,
    TorchSettings,
    read_settings,
    read_string,
    read_whole,
)
from unisono.transforms.media.text import clean_text

OPTIONS = ("batch_tokens", "prompt", "query_prompt", "revision")
# Tokens in one forward pass. A CPU is fastest while the activations fit in its caches: with MiniLM, batches of 4,096
# tokens take two cores 1.3 times as long (docs/performance.md). A GPU needs enough tokens to keep it busy.
CPU_TOKENS, CUDA_TOKENS = 1024, 32_768
# The least number of tokens in one call to `encode`. The encode stage sorts texts by their letters, which predict the
# number of tokens only within a factor of two. `encode` sorts by the true number, which leaves hardly any padding if it
# gets so many tokens.
TOKENS_AT_ONCE = 65_536
FALLBACK_MAX_TOKENS = 512  # if neither the checkpoint's files nor its tokenizer nor its model state a maximum


class Settings(NamedTuple):
    """The options of an encoder, after their check.

    Attributes:
        torch: the options that all torch families share.
        revision: a tag, branch or commit of a hub repository.
        prompt: the text that is put before every text of the catalogue. None means the checkpoint's own choice.
        query_prompt: the text that is put before every query. None means the checkpoint's own choice.
        batch_tokens: tokens in one forward pass, with padding. None means `CUDA_TOKENS` or `CPU_TOKENS`, by the device.
    """

    torch: TorchSettings
    revision: str | None
    prompt: str | None
    query_prompt: str | None
    batch_tokens: int | None


def describe(spec: EncoderSpec) -> EncoderInfo:
    """Checks the options and the checkpoint's files, and returns id and dimension. Weights are hashed, not loaded.

    Raises:
        JobError: an option or a file is missing or wrong.
    """
    settings, found = _read(spec)
    return EncoderInfo(_encoder_id(found, settings), found.dim)


def load(spec: EncoderSpec) -> Encoder:
    """Loads the tokenizer, and the model onto the device.

    Raises:
        JobError: as `describe`, or the weights do not fit the configuration, or this machine has no such device.
    """
    return TransformersTextEncoder(spec, *_read(spec))


def _read(spec: EncoderSpec) -> tuple[Settings, Checkpoint]:
    settings = Settings(
        torch=read_settings(spec, OPTIONS),
        revision=read_string(spec, "revision"),
        prompt=read_string(spec, "prompt"),
        query_prompt=read_string(spec, "query_prompt"),
        batch_tokens=read_whole(spec, "batch_tokens", None),
    )
    root = find_directory(spec, settings.revision)
    return settings, read_checkpoint(f"{spec.key}.model", root, settings.prompt, settings.query_prompt)


def _encoder_id(found: Checkpoint, settings: Settings) -> str:
    # Raise `recipe` with every change of this file that changes the output.
    return f"transformers-{content_id(found, recipe='1', **settings.torch.facts)}"


# --- running it --------------------------------------------------------------------------------------------


class TransformersTextEncoder:
    """A tokenizer, a transformer, and the steps from token vectors to an embedding.

    The rest of the batch changes an embedding only by the rounding of matrix products (about 1e-6).
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
        """Strips one text. Its tokens are made in `encode`, because a tokenizer serves only one thread at a time.

        Raises:
            InputError: EMPTY_TEXT.
        """
        return clean_text(raw)

    def cost(self, prepared: str) -> int:
        """Estimates the number of tokens: a quarter for an ASCII letter, one for a Chinese character."""
        letters = len(self._prompt) + len(prepared)
        # The bytes of UTF-8 beyond one byte for each letter, such as 2 for a Chinese character.
        wider = len(self._prompt.encode()) + len(prepared.encode()) - letters
        return min(self._max_tokens, 2 + (2 * letters + 3 * wider) // 8)

    def encode(self, batch: Sequence[str]) -> np.ndarray:
        """Encodes texts: float32 [len(batch), dim]. Longer texts are cut at the checkpoint's maximum."""
        if not len(batch):
            return np.empty((0, self.dim), np.float32)
        ids = self._tokenize([self._prompt + text for text in batch])
        lengths = np.array([len(of_text) for of_text in ids["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        cuts = _forward_batches(lengths[order], self._batch_tokens)
        # The results are fetched together at the end, so a GPU computes one batch while the next is padded and sent.
        parts = [self._forward({n: [of_text[i] for i in order[a:b]] for n, of_text in ids.items()}) for a, b in cuts]
        out = np.empty((len(batch), self.dim), np.float32)
        out[order] = self._runtime.fetch(self._torch.cat(parts))
        return out

    def _forward(self, ids: dict[str, list[list[int]]]) -> Any:
        """Encodes one batch of token ids: float32 tensor [n, dim] on the device."""
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
        """Pools token vectors as sentence-transformers does.

        Args:
            vectors: float32 tensor [n, tokens, width].
            mask: int64 tensor [n, tokens], 0 for padding, which is on the right.
            step: the pooling.

        Returns:
            float32 tensor [n, width × number of modes].
        """
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
        """Returns an encoder that shares this one's model and puts another prompt before texts."""
        other = copy.copy(self)
        other._prompt = prompt
        other._prompt_tokens = other._count_prompt()
        return other

    def _count_prompt(self) -> int:
        """Counts the tokens of the prompt, which a pooling may leave out. A closing special token does not count."""
        if not self._prompt:
            return 0
        ids = self._tokenize([self._prompt])["input_ids"][0]
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids)

    def _load_dense(self, key: str, step: Dense) -> Any:
        """Loads a dense layer onto the device.

        Raises:
            JobError: its file does not hold the weights that its configuration states.
        """
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
    """Cuts texts into batches.

    Args:
        lengths: int64 [n], the tokens of each text, ascending.
        budget: the largest number of tokens in a batch, with padding. A single longer text is a batch of its own.

    Yields:
        The first text of each batch, and the one after its last.
    """
    start = 0
    while start < len(lengths):
        sizes = lengths[start:] * np.arange(1, len(lengths) - start + 1)
        end = start + max(1, int(np.searchsorted(sizes, budget, side="right")))
        yield start, end
        start = end


def _load_model(key: str, directory: Path) -> Any:
    """Loads a transformer, or only the encoder of an encoder-decoder.

    Raises:
        JobError: it cannot be loaded, or a weight is missing.
    """
    import transformers

    kind = read_json(key, directory / "config.json")["model_type"]
    # A BERT's pooler is for its training task. Many checkpoints lack it, and it is not used here.
    return load_model(key, directory, getattr(transformers, ENCODER_HALVES.get(kind, "AutoModel")), ("pooler.",))


def _load_tokenizer(key: str, directory: Path) -> Any:
    """Loads a tokenizer, and makes it pad on the right.

    Raises:
        JobError: it cannot be loaded, or has no token to pad with.
    """
    tokenizer = load_tokenizer(key, directory)
    if tokenizer.pad_token is None:  # decoders often have none; the attention mask hides the padding
        if tokenizer.eos_token is None:
            raise JobError(f"{key}: the tokenizer in {directory} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    # Padding on the left would move a text's positions with the longest text of its batch.
    tokenizer.padding_side = "right"
    return tokenizer


def _max_tokens(found: Checkpoint, tokenizer: Any, model: Any) -> int:
    """Finds the longest input, in tokens: what the checkpoint states, but never more than the model has positions."""
    limits = [found.max_tokens] if found.max_tokens else []
    if tokenizer.model_max_length < 10**9:  # transformers has 10**30 here if the checkpoint states nothing
        limits.append(tokenizer.model_max_length)
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if positions is not None and hasattr(positions, "num_embeddings"):
        # RoBERTa and its relatives number positions from the padding index plus one.
        padding = getattr(positions, "padding_idx", None)
        limits.append(positions.num_embeddings - (0 if padding is None else padding + 1))
    elif getattr(model.config, "max_position_embeddings", -1) > 0:
        limits.append(model.config.max_position_embeddings)
    return min(limits) if limits else FALLBACK_MAX_TOKENS
