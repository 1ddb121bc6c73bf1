"""URIs inside and outside of the allowed places, files that are not there or too large, and storage that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from unisono.transforms.base.errors import InputError, Reason
from unisono.transforms.media.fetch import MediaSource
from unisono.transforms.media.limits import MediaLimits


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop" / "images").mkdir(parents=True)
    (tmp_path / "shop" / "images" / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.png").write_bytes(b"other")
    (tmp_path / "shop" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "shop-evil").mkdir()
    (tmp_path / "shop-evil" / "c.png").write_bytes(b"evil")
    return tmp_path


def test_relative_absolute_and_file_uris_resolve(shop: Path) -> None:
    source = MediaSource(str(shop / "shop"))
    absolute = f"{shop}/shop/images/a.png"
    for uri in ("images/a.png", "./images/../images/a.png", absolute, f"file://{absolute}"):
        assert source.fetch(uri) == b"picture"


REFUSED = ["../secret.png", "images/../../secret.png", "link.png", "../shop-evil/c.png", "/etc/passwd"]
REFUSED += ["http://x/a.png", "https://x/a.png", "gs://bucket/a.png", "s3://b/a.png", "../other/b.png"]


@pytest.mark.parametrize("uri", REFUSED)
def test_no_uri_leaves_the_root(shop: Path, uri: str) -> None:
    with pytest.raises(InputError) as e:
        MediaSource(str(shop / "shop")).fetch(uri)
    assert e.value.reason == Reason.URI_NOT_ALLOWED


def test_allowed_prefixes_are_read(shop: Path) -> None:
    source = MediaSource(str(shop / "shop"), allow=(str(shop / "other"), "gs://media/public/"))
    assert source.fetch("../other/b.png") == b"other"
    assert source.resolve("gs://media/public/x/../a.png") == "gs://media/public/a.png"
    for uri in ("gs://media/private/a.png", "gs://media/public/../private/a.png", "gs://media/publicly.png"):
        with pytest.raises(InputError) as e:
            source.resolve(uri)
        assert e.value.reason == Reason.URI_NOT_ALLOWED


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("images/none.png", Reason.NOT_FOUND), ("images", Reason.NOT_FOUND), ("images/a.png/x", Reason.NOT_FOUND)],
)
def test_a_file_that_is_not_there(shop: Path, uri: str, reason: Reason) -> None:
    with pytest.raises(InputError) as e:
        MediaSource(str(shop / "shop")).fetch(uri)
    assert e.value.reason == reason


def test_too_many_bytes(shop: Path) -> None:
    source = MediaSource(str(shop / "shop"), limits=MediaLimits(max_media_bytes=3))
    for value in ("images/a.png", b"picture"):
        with pytest.raises(InputError) as e:
            source.fetch(value)
        assert e.value.reason == Reason.TOO_MANY_BYTES


def test_inline_bytes_are_returned_unchanged(shop: Path) -> None:
    assert MediaSource(str(shop)).fetch(b"inline") == b"inline"


@pytest.mark.parametrize("failures", [3, 4])
def test_a_local_read_is_tried_four_times(failures: int, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, left = open, [failures]
    pauses: list[float] = []

    def flaky_open(*args: object, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real_open(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", flaky_open)
    monkeypatch.setattr("unisono.transforms.media.fetch.time.sleep", pauses.append)
    source = MediaSource(str(shop / "shop"))
    if failures < 4:
        assert source.fetch("images/a.png") == b"picture"
    else:
        with pytest.raises(InputError, match="Input/output error, 4 attempts") as caught:
            source.fetch("images/a.png")
        assert caught.value.reason is Reason.UNAVAILABLE
    assert len(pauses) == 3
    assert all(0 <= pause <= 0.2 * 2**i for i, pause in enumerate(pauses))
