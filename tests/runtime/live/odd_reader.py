"""A reader whose orders may hang it, kill it, eat memory or panic, by the name of the job."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from loramux_runtime.live.reading import process
from loramux_runtime.live.reading.orders import ReadAnswer, ReadOrder
from loramux_runtime.live.reading.read import RowReader

REAL = RowReader._answer


class Panic(BaseException):
    """As pyo3 raises where Rust code panics."""


def odd(self: RowReader, order: ReadOrder, sign: Any) -> ReadAnswer:
    kind = order.job_id.partition("-")[0]
    if kind == "hangs":
        time.sleep(600)
    if kind == "dies":
        os.write(2, b"a last word\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "once" and not (mark := Path(order.folder) / "died once").exists():
        mark.touch()
        os._exit(3)
    if kind == "eats":
        held = []
        while True:
            held.append(bytearray(64 << 20))
    if kind == "panics":
        raise Panic("index out of bounds")
    return REAL(self, order, sign)


if __name__ == "__main__":
    RowReader._answer = odd  # type: ignore[method-assign]
    sys.exit(process.main())
