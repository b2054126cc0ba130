"""The base model's folder changes while a scheduler has it loaded: that is said, once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_runtime.live.watch.base_watch import BaseWatch


def _base(folder: Path) -> Path:
    folder.mkdir()
    for name, text in (("config.json", "{}"), ("model.safetensors", "w" * 99_999), ("tokenizer.json", "{}")):
        (folder / name).write_text(text)
    return folder


CHANGES: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda f: (f / "model.safetensors").write_text("v" * 99_999),
    "config.json": lambda f: (f / "config.json").write_text('{"rms_norm_eps": 1}'),
    "tokenizer.json": lambda f: (f / "tokenizer.json").write_text("{ }"),
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"),
    "(config.json, model.safetensors, tokenizer.json)": shutil.rmtree,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_base_is_said_once(what: str, tmp_path: Path) -> None:
    said: list[str] = []
    watch = BaseWatch(_base(tmp_path / "base"), said.append, every_s=0.0)
    watch.look()
    assert watch.changed is None
    CHANGES[what](tmp_path / "base")
    watch.look()
    watch.look()
    assert len(said) == 1 and what in said[0] and "has changed on the disk" in str(watch.changed)


def test_files_that_are_only_written_again_are_no_change(tmp_path: Path) -> None:
    folder = _base(tmp_path / "base")
    watch = BaseWatch(folder, pytest.fail, every_s=0.0)
    for path in folder.iterdir():
        text = path.read_text()
        path.unlink()
        path.write_text(text)
    watch.look()
    assert watch.changed is None


def test_a_base_without_a_folder_is_not_watched() -> None:
    BaseWatch(None, pytest.fail, every_s=0.0).look()
