"""Modules that have moved are found under their old names."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

import loramux_policies.old_names
import loramux_runtime.old_names

TABLES = {
    "loramux_policies": loramux_policies.old_names.MOVED,
    "loramux_runtime": loramux_runtime.old_names.MOVED,
}


@pytest.mark.parametrize("package", TABLES)
def test_every_new_name_is_there_and_no_old_one(package: str) -> None:
    for old, new in TABLES[package].items():
        assert importlib.util.find_spec(f"{package}.{new}") is not None, new
        spec = importlib.util.find_spec(f"{package}.{old}")
        assert spec is not None and spec.origin is None, old


def test_an_old_name_gives_the_same_things_and_says_the_new_name() -> None:
    with pytest.warns(DeprecationWarning, match="loramux_policies.packing is loramux_policies.rule_helpers now"):
        old = importlib.import_module("loramux_policies.packing")
    assert old.start_in_order is importlib.import_module("loramux_policies.rule_helpers").start_in_order
