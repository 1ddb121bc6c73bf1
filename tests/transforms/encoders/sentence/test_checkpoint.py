"""Text checkpoints that are refused, most of them before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import write_json
from tests.transforms.encoders.sentence.berts import edit, spec_of
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.sentence import transformers_text as family

pytest.importorskip("torch")
pytest.importorskip("transformers")


def _drop(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


def _pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _cut(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _lfs(path: Path) -> None:
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _lose_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no-config": (_drop("config.json"), {}, r"no file config\.json in .*save_pretrained"),
    "no-weights": (_drop("model.safetensors"), {}, r"no file model\.safetensors"),
    "pickled-weights": (_pickle_only, {}, r"pytorch_model\.bin .*only safetensors.*safe_serialization=True"),
    "cut-weights": (_cut, {}, r"incomplete or damaged"),
    "lfs-pointer": (_lfs, {}, r"Git LFS pointer.*git lfs pull"),
    "no-tokenizer": (_drop("tokenizer.json"), {}, r"no tokenizer\.json"),
    "bad-json": (lambda p: (p / "config.json").write_text("{"), {}, r"config\.json cannot be read as JSON"),
    "module": (lambda p: write_json(p / "modules.json", [{"type": "x.CLIPModel"}]), {}, r"CLIPModel.*Pooling"),
    "pooling": (edit("1_Pooling/config.json", pooling_mode="median"), {}, r"'median'.*allowed: cls, max, mean"),
    "decoder": (edit("config.json", is_encoder_decoder=True, model_type="bart"), {}, r"'bart'.*encoder-decoder"),
    "own-code": (edit("config.json", auto_map={"AutoModel": "m.M"}, model_type="mine"), {}, r"'mine'.*never run"),
    "option": (lambda p: None, {"pooling": "cls"}, r"encoders\.text\.pooling: no such option; allowed: batch_tokens"),
    "prompt": (lambda p: None, {"prompt": 3}, r"encoders\.text\.prompt: got 3; allowed: a string"),
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
        pytest.param(edit("config.json", hidden_size=64), r"cannot be loaded", id="shapes"),
    ],
)
def test_weights_that_do_not_fit_are_refused_on_loading(
    change: Callable[[Path], None], message: str, bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    change(tmp_path)
    with pytest.raises(JobError, match=message):
        family.load(spec_of(tmp_path))
