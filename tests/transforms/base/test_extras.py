"""Optional libraries that are missing: the message names them and the extras that bring them."""

from __future__ import annotations

import sys

import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.extras import is_installed, require, require_all


def test_what_is_installed_is_told_without_an_import() -> None:
    assert is_installed("json")
    assert is_installed("concurrent.futures")
    assert not is_installed("no_such_library")
    assert not is_installed("no_such_library.part")
    assert is_installed("this")  # a module that prints when it is imported
    assert "this" not in sys.modules


def test_one_missing_library() -> None:
    require("json", "image", "encoders.image", "lite")
    with pytest.raises(JobError) as caught:
        require("no_such_library", "image", "encoders.image", "lite")
    assert str(caught.value) == (
        "encoders.image: lite needs no_such_library, which is not installed; pip install 'unisono[image]'"
    )
    with pytest.raises(JobError, match=r"^ranking: needs no_such_library, which is not installed"):
        require("no_such_library", "ranking", "ranking")


def test_several_missing_libraries_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIL", "skimage"):  # None means that an import fails
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(JobError) as caught:
        require_all({"image": ["PIL", "skimage"], "gcp": ["json"], "audio": ["no_such_library"]}, "encoders.x", "st/a")
    assert str(caught.value) == (
        "encoders.x: st/a needs pillow, scikit-image and no_such_library, which are not installed; "
        "pip install 'unisono[image,audio]'"
    )
