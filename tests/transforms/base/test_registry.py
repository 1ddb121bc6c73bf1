"""Tables of implementations by name."""

import sys

import pytest

from unisono.transforms.base.errors import JobError
from unisono.transforms.base.registry import Lazy, Registry

TABLE = Registry("cooking.method", {"boil": Lazy("json:dumps"), "fry": Lazy("this_module_is_not_there:fry")})


def test_it_is_a_mapping_in_the_order_of_its_entries():
    assert list(TABLE) == ["boil", "fry"]
    assert len(TABLE) == 2
    assert "bake" not in TABLE
    assert TABLE["boil"].load()([1]) == "[1]"


def test_listing_imports_nothing():
    assert "wave" not in sys.modules
    table = Registry("a.b", {"wave": Lazy("wave:open")})
    assert table.check("wave") == "wave"
    assert "wave" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        TABLE["fry"].load()


def test_an_unknown_name_is_refused_with_the_key_and_the_names():
    with pytest.raises(JobError, match=r"^cooking\.method: 'bake' is none of boil, fry; choose one of them$"):
        TABLE.check("bake")
