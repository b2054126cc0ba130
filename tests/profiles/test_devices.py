"""Device profiles and speed-up curves.

What ships is whole, and every malformed file names the bad key.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loramux_profiles.curves import FREE, NONE, curve_through, load_curve
from loramux_profiles.datafiles import data_dir
from loramux_profiles.devices import PARAMETERS, DeviceProfile, device_names, load_device, parse_devices
from loramux_traces.errors import InvalidInputError, UsageError

CARDS = {"a100-40g": 40, "a100-80g": 80, "h100-80g": 80, "a6000": 48, "rtx-3090": 24, "rtx-4090": 24, "l4": 24}


@pytest.mark.parametrize("name", CARDS)
def test_cards_that_ship(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    assert device.memory_bytes == CARDS[name] << 30
    assert set(device.parameters) == set(PARAMETERS)
    assert all(parameter.note for parameter in device.parameters.values())


def test_every_shipped_profile_loads_and_is_cached() -> None:
    assert set(device_names()) == {*CARDS, "aspen-a100-80g", "cpu"}
    for name in device_names():
        assert load_device(name) is load_device(name)
        assert load_device(name).parallel_curve.phi(1) == 1.0


def test_what_is_fitted_says_so() -> None:
    origins = load_device("h100-80g").origins()
    assert origins["eta_g"] == "fitted"
    assert origins["c2"] == "assumed"
    assert load_device("rtx-4090").origins()["parallel"] == "fitted"


def test_parse_devices() -> None:
    devices = parse_devices("4xa100-80g, 2xl4,a6000")
    assert [d.name for d in devices] == ["a100-80g"] * 4 + ["l4"] * 2 + ["a6000"]
    assert devices[0] is devices[3]


@pytest.mark.parametrize("text", ["", "4x", "0xl4", "4xa100-80g,", "a b", "999999xl4", "1000001xl4", "-1xl4"])
def test_bad_device_lists_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_devices(text)


def test_an_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean a100"):
        load_device("a100-80gb")


def _profile() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((data_dir() / "l4" / "device.json").read_text())
    return data


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    data = _profile()
    data["name"] = "mine"
    data["parameters"]["eta_g"] = {"value": 0.61, "unit": "1", "origin": "measured", "note": "profiler run 7"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    device = load_device(str(path))
    assert device.eta_g == 0.61 and device.origins()["eta_g"] == "measured"
    assert device.digest != load_device("l4").digest


def _set(data: dict[str, Any], dotted: str, value: object) -> None:
    *parents, last = dotted.split(".")
    place: Any = data
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    if value is None:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 2),
        ("schema_version", None),
        ("name", "A B"),
        ("parameters.eta_g", None),
        ("parameters.eta_x", {"value": 1, "unit": "1", "origin": "assumed", "note": "x"}),
        ("parameters.eta_g.value", 1.5),
        ("parameters.eta_g.value", "fast"),
        ("parameters.eta_g.unit", "percent"),
        ("parameters.eta_g.origin", "guessed"),
        ("parameters.eta_g.note", ""),
        ("parameters.memory_bytes.value", 0),
        ("parameters", []),
        ("parallel.points", []),
        ("parallel.points", [[2, 3.0]]),
        ("parallel.points", [[2, 1.5], [2, 1.6]]),
        ("surplus", 1),
    ],
)
def test_a_malformed_profile_names_the_key(tmp_path: Path, key: str, value: object) -> None:
    data = _profile()
    _set(data, key, value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError) as error:
        load_device(str(path))
    text = str(error.value)
    assert key.split(".")[1 if "parameters." in key else 0] in text and "bad.json" in text


@pytest.mark.parametrize("value", [True, False, "5", "0.5"])
@pytest.mark.parametrize(
    "key",
    [
        "schema_version",
        "parameters.eta_g.value",
        "parameters.b0_bytes.value",
        "parallel.points.0.0",
        "parallel.points.0.1",
    ],
)
def test_texts_and_truth_values_are_no_numbers(tmp_path: Path, key: str, value: object) -> None:
    data = _profile()
    _set(data, key, value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match="must be") as error:
        load_device(str(path))
    assert f"{path}: column {key}: {str(value)!r}; must be" in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["name", "parameters", "parallel", "schema_version", "parameters.c0", "parallel.points"]), JSON)
def test_any_malformed_profile_is_a_validation_error(key: str, value: object) -> None:
    data = copy.deepcopy(_profile())
    _set(data, key, value)
    try:
        DeviceProfile.model_validate(data)
    except ValidationError as error:
        assert error.error_count() >= 1


def test_named_curves() -> None:
    assert [NONE.phi(n) for n in (0, 1, 5)] == [0, 1, 1]
    assert [FREE.phi(n) for n in (1, 5, 1000)] == [1, 5, 1000]
    curve = load_curve("linear:0.3,2.5")
    assert [curve.phi(n) for n in range(1, 9)] == pytest.approx([min(1 + 0.3 * (n - 1), 2.5) for n in range(1, 9)])
    assert curve.rate(4) == pytest.approx(1.9 / 4)
    assert load_curve("linear:0,2.5").phi(9) == 1


def test_curve_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "phi.csv"
    path.write_text("n,phi\n1,1\n3,1.8\n5,2\n")
    curve = load_curve(str(path))
    assert [curve.phi(n) for n in (1, 2, 3, 4, 5, 6, 99)] == pytest.approx([1, 1.4, 1.8, 1.9, 2, 2, 2])
    assert curve_through("x", [(4, 2.5)]).points == pytest.approx((1.0, 1.5, 2.0, 2.5))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "n,phi\n",
        "a,b\n1,1\n",
        "n,phi\n1,nan\n",
        "n,phi\n2,1\n1,1\n",
        "n,phi\n1,2\n",
        "n,phi\nx,1\n",
        "n,phi\n1\n",
        "n,phi\n1,-1\n",
    ],
)
def test_a_bad_curve_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "phi.csv"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"phi\.csv"):
        load_curve(str(path))


@pytest.mark.parametrize(
    "name", ["fast", "linear:", "linear:1", "linear:2,3", "linear:0.3,nan", "linear:x,y", "linear:1e-9,2"]
)
def test_a_bad_curve_name(name: str) -> None:
    with pytest.raises(UsageError):
        load_curve(name)
    with pytest.raises(InvalidInputError):
        load_curve("/nowhere/phi.csv")
