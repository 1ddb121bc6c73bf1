"""Checkpoints in a bucket: fetched once per machine, compared with their hashes, and fetched again if they differ."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import TEXTS, save_sentence_files, save_transformer
from unisono.transforms.base.errors import JobError
from unisono.transforms.encoders.base import EncoderSpec
from unisono.transforms.encoders.checkpoints import bucket as cache
from unisono.transforms.encoders.sentence import transformers_text as family
from unisono.transforms.media import fetch as media

pytest.importorskip("torch")
pytest.importorskip("gcp_storage_emulator")
storage = pytest.importorskip("google.cloud.storage")

BUCKET, PREFIX = "models", "text/tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    save_transformer(path)
    save_sentence_files(path, {"pooling_mode_mean_tokens": True}, normalize=True)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from gcp_storage_emulator.server import create_server

    server = create_server("localhost", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    yield f"http://localhost:{server._api._httpd.server_address[1]}"
    server.stop()


@pytest.fixture
def bucket(server: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """A bucket with the checkpoint, and an empty cache."""
    from google.auth.credentials import AnonymousCredentials

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("UNISONO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_checked", set())
    client = storage.Client(project="test", credentials=AnonymousCredentials())
    monkeypatch.setattr(media, "_gcs_client", client)
    bucket = client.bucket(BUCKET)
    for path in checkpoint.rglob("*"):
        if path.is_file():
            bucket.blob(f"{PREFIX}/{path.relative_to(checkpoint)}").upload_from_filename(path)
    yield bucket
    for blob in list(client.list_blobs(BUCKET)):
        blob.delete()


def spec_of(uri: str = f"gs://{BUCKET}/{PREFIX}/") -> EncoderSpec:
    return EncoderSpec("text", uri)


def fetched(tmp_path: Path) -> list[Path]:
    return sorted(p for p in (tmp_path / "cache" / "weights").glob("*/files") if p.parent.suffix != ".part")


def test_it_is_the_same_encoder_as_from_the_local_directory(bucket: Any, checkpoint: Path, tmp_path: Path) -> None:
    local = EncoderSpec("text", str(checkpoint))
    assert family.describe(spec_of()) == family.describe(local)
    assert (family.load(spec_of()).encode(TEXTS) == family.load(local).encode(TEXTS)).all()
    copies = {p.relative_to(fetched(tmp_path)[0]) for p in fetched(tmp_path)[0].rglob("*") if p.is_file()}
    assert copies == {p.relative_to(checkpoint) for p in checkpoint.rglob("*") if p.is_file()}


def test_it_is_fetched_once(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    whole = storage.Blob.download_to_filename

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        downloads.append(self.name)
        whole(self, *arguments, **options)

    monkeypatch.setattr(storage.Blob, "download_to_filename", counted)
    family.describe(spec_of())
    first = len(downloads)
    assert first >= 5
    family.describe(spec_of(f"gs://{BUCKET}/{PREFIX}"))  # without the slash at the end
    assert len(downloads) == first
    cache._checked.clear()  # as in another process
    family.describe(spec_of())
    assert len(downloads) == first


@pytest.mark.parametrize("damage", ["cut", "bits", "missing", "half-fetched"])
def test_a_damaged_cache_is_fetched_again(damage: str, bucket: Any, tmp_path: Path) -> None:
    before = family.describe(spec_of())
    weights = fetched(tmp_path)[0] / "model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-100])
    elif damage == "bits":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        weights.unlink()
    else:  # left by a process that died before it could write its list
        (weights.parents[1] / "fetched.json").unlink()
    cache._checked.clear()
    assert family.describe(spec_of()) == before
    assert weights.read_bytes() == content


def test_a_checkpoint_that_is_replaced_is_another_encoder(bucket: Any, tmp_path: Path) -> None:
    before = family.describe(spec_of())
    save_transformer(tmp_path / "new", seed=7)
    bucket.blob(f"{PREFIX}/model.safetensors").upload_from_filename(tmp_path / "new" / "model.safetensors")
    assert family.describe(spec_of()).encoder_id != before.encoder_id
    assert len(fetched(tmp_path)) == 2


def test_bytes_that_arrive_damaged_are_not_used(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = storage.Blob.download_to_filename

    def damaged(self: object, path: Path, **options: object) -> None:
        whole(self, path, **options)
        if path.suffix == ".safetensors":
            path.write_bytes(bytes(path.stat().st_size))

    monkeypatch.setattr(storage.Blob, "download_to_filename", damaged)
    with pytest.raises(JobError, match=r"^encoders\.text\.model: gs://models/.*safetensors arrived damaged"):
        family.describe(spec_of())
    assert not fetched(tmp_path)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param(f"gs://{BUCKET}/no/such", "there are no objects under gs://models/no/such", id="nothing-there"),
        pytest.param("gs://absent/x", "gs://absent/x cannot be listed|there are no objects under", id="no-bucket"),
        pytest.param(f"gs://{BUCKET}/pickled", "pytorch_model.bin but no safetensors.*never unpickled", id="pickled"),
    ],
)
def test_a_directory_that_cannot_be_fetched_is_refused_in_one_line(uri: str, message: str, bucket: Any) -> None:
    bucket.blob("pickled/pytorch_model.bin").upload_from_string(b"x")
    bucket.blob("pickled/config.json").upload_from_string(b"{}")
    with pytest.raises(JobError, match=message) as caught:
        family.describe(spec_of(uri))
    assert str(caught.value).startswith("encoders.text.model: ")
    assert "\n" not in str(caught.value)


def test_processes_share_one_fetch(bucket: Any, server: str, tmp_path: Path) -> None:
    code = (
        "import json; from google.auth.credentials import AnonymousCredentials as A; from google.cloud import storage;"
        "from unisono.transforms.media import fetch; fetch._gcs_client = storage.Client(project='t', credentials=A());"
        "n = []; whole = storage.Blob.download_to_filename;"
        "storage.Blob.download_to_filename = lambda s, *a, **k: (n.append(s.name), whole(s, *a, **k));"
        "from unisono.transforms.encoders.checkpoints.bucket import fetch_directory as f;"
        f"print(json.dumps([str(f('k', 'gs://{BUCKET}/{PREFIX}')), len(n)]))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [json.loads(p.communicate(timeout=60)[0]) for p in running]
    assert len({path for path, _ in printed}) == 1
    assert sorted(n > 0 for _, n in printed) == [False, False, True]
