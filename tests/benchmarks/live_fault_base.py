"""Faults of the base model's folder: changed, replaced or deleted while it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from live_fault_try import Try

WEIGHTS: Final = "model.safetensors"


def _in_place(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(len(content) // 4)
        file.write(bytes(len(content) // 2))


def _truncated(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(4096)


def _by_rename(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (folder / "new").write_bytes(bytes(content))
    (folder / "new").rename(folder / WEIGHTS)


def _config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))


def _deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def changed(t: Try, change: Callable[[Path], None]) -> None:
    """The base is another one on the disk from step 20 on."""
    good = t.folder / "good"
    shutil.copytree(t.folder / "base", good)
    t.begin()
    change(t.folder / "base")
    t.until(lambda: all(row["state"] == "COMPLETED" for row in t.rows()), "the jobs end with the loaded weights", 120)
    t.expect("has changed" in t.said(), "nobody says that the base has changed")
    t.stop()
    t.found.said = t.last_line()
    t.run("--exit-when-idle")
    again = t.wait(120)
    t.found.notes.append(f"the next start: exit {again}: {t.last_line()[-110:]}")
    t.expect(again == 2, f"the next start: exit {again}")
    shutil.rmtree(t.folder / "base", ignore_errors=True)
    good.rename(t.folder / "base")
    t.found.code = None
    t.cure()


CASES: Final[dict[str, Callable[[Try], None]]] = {
    "base: weights overwritten in place": partial(changed, change=_in_place),
    "base: weights truncated": partial(changed, change=_truncated),
    "base: weights replaced by rename": partial(changed, change=_by_rename),
    "base: config.json changed": partial(changed, change=_config),
    "base: folder deleted": partial(changed, change=_deleted),
}
