"""Residual charts: what they hold, and that their axes can be read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from loramux_analysis import residuals
from loramux_analysis.residuals import draw_residuals
from loramux_analysis.style import Drawing


def test_axes_are_numbers_that_people_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def save(drawing: Drawing, folder: Path) -> list[Path]:
        drawing.figure.canvas.draw()
        seen[drawing.name] = [tick.get_text() for tick in drawing.figure.axes[0].get_xticklabels()]
        return []

    monkeypatch.setattr(residuals, "save", save)
    series = {
        "time": ([0.02, 0.3, 4.0], [0.0, 0.1, -0.1], "seconds"),
        "memory": ([2e5, 3e7, 4e9], [0.0, 0.1, -0.1], "bytes"),
    }
    draw_residuals(tmp_path, "m", "m", series)
    assert all("$" not in name and 1 <= len(names) <= 7 for names in seen.values() for name in names)
    assert "0.1" in seen["m-time"] or "0.5" in seen["m-time"]
    assert any(name.endswith("M") for name in seen["m-memory"])


def test_files_and_figures(tmp_path: Path) -> None:
    paths = draw_residuals(tmp_path, "m", "m", {"time": ([1.0, 2.0], [0.0, 0.1], "seconds")})
    assert {path.suffix for path in paths} == {".png", ".svg", ".csv"}
    data = pd.read_csv(tmp_path / "m-time.csv")
    assert list(data["log_measured_over_predicted"]) == [0.0, 0.1]
