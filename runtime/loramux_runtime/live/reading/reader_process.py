"""This module is the scheduler's end of one process that reads rows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from loramux_runtime.live.reading.orders import ReadOrder
from loramux_traces.errors import printable

AHEAD: Final = 64
"""Most orders that a reader has at once.

It answers them between two looks of the scheduler, which come once a training step: with one order
at a time it read one job a step, 4.6 a second beside steps of 165 ms.
"""


class ReaderProcess:
    """Starts a reader, gives it orders, and hears what it says.

    `setting` is told to the process first. Only `hear` learns anything: what the other properties
    say is as of the last call.
    """

    def __init__(self, command: Sequence[str], setting: Mapping[str, Any], clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        # a reader that is at a long job takes nothing from its pipe: no step waits for that
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._untold = b""
        """What does not fit into the pipe yet."""
        self._text = b""
        self._orders: deque[ReadOrder] = deque()
        """What is not answered yet."""
        self._at: int | None = None
        self.tokenizer: Mapping[str, str] | None = None
        """What rows depend on of the tokenizer (`made_from`); None until it is loaded."""
        self.heard_s = clock_s()
        """When the process last said anything, or was given something to do."""
        self.began_s = self.heard_s
        """When it was heard to begin with the order that it is at."""
        self.rows = 0
        """Rows that it has read of that order."""
        self._tell(setting)

    @property
    def ready(self) -> bool:
        """Whether the tokenizer is loaded."""
        return self.tokenizer is not None

    # -- orders

    @property
    def busy(self) -> bool:
        """Whether an order is not answered yet."""
        return bool(self._orders)

    @property
    def n_orders(self) -> int:
        """Number of orders that are not answered yet."""
        return len(self._orders)

    @property
    def at(self) -> ReadOrder | None:
        """The order that the process is at: the one to blame where it dies or hangs.

        None where there is none, or where it was taken back after it was begun.
        """
        if self._at is None:
            # one that dies over the line of an order has not said that it begins
            return self._orders[0] if self._orders else None
        return next((order for order in self._orders if order.number == self._at), None)

    @property
    def has_room(self) -> bool:
        """Whether it takes another order."""
        return self.ready and len(self._orders) < AHEAD

    def give(self, order: ReadOrder) -> None:
        """Have a job's rows read, after those of earlier orders."""
        if not self._orders:
            self.heard_s = self.began_s = self._clock_s()
            self.rows = 0
        self._orders.append(order)
        self._tell({"order": order.values()})

    def take_back(self, numbers: Iterable[int] | None = None) -> list[ReadOrder]:
        """Return orders that the process is not at, in order, and have it forget them.

        `numbers` says which; None: all. An answer that comes nevertheless is not heard.
        """
        at = self.at
        back = [order for order in self._orders if order is not at and (numbers is None or order.number in numbers)]
        if back:
            self._tell({"forget": [order.number for order in back]})
            self._orders = deque(order for order in self._orders if order not in back)
        return back

    # -- what it says

    def hear(self) -> list[Mapping[str, Any]]:
        """Return the answers that have come, without waiting; `broken` is one, too."""
        self._go_on_telling()
        found: list[Mapping[str, Any]] = []
        for line in self._lines():
            self.heard_s = self._clock_s()
            if "broken" in line:
                found.append(line)
            elif "ready" in line:
                self.tokenizer = line["ready"]
            elif "at" in line:
                self._at, self.began_s, self.rows = line["at"], self.heard_s, 0
            elif "alive" in line:
                self.rows = int(line["rows"])
            else:
                self._at, self.rows = None, 0
                number = line["answer"]["number"]
                if any(order.number == number for order in self._orders):
                    self._orders = deque(order for order in self._orders if order.number != number)
                    found.append(line)
        return found

    def _lines(self) -> list[dict[str, Any]]:
        while True:
            try:
                text = os.read(self._from, 1 << 16)
            except (BlockingIOError, OSError, ValueError):
                break
            if not text:
                break
            self._text += text
        *lines, self._text = self._text.split(b"\n")
        return [json.loads(line) for line in lines]

    def _tell(self, what: Mapping[str, Any]) -> None:
        self._untold += json.dumps(what).encode() + b"\n"
        self._go_on_telling()

    def _go_on_telling(self) -> None:
        # a full pipe is written to again later; a reader that is dead is found so by `ended`
        with contextlib.suppress(OSError):
            while self._untold:
                self._untold = self._untold[os.write(self._to, self._untold) :]

    # -- its end

    @property
    def ended(self) -> bool:
        """Whether the process has ended by itself."""
        return self._process.poll() is not None

    def how(self) -> str:
        """Say how an ended process ended, with the last line that it printed."""
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        try:
            size = self._complaints.seek(0, os.SEEK_END)
            self._complaints.seek(max(0, size - 2000))
            lines = self._complaints.read().decode(errors="replace").split("\n")
        except (OSError, ValueError):
            return how
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        memory = " (out of memory?)" if code == -9 else ""
        return how + memory + (f": {printable(last, 200)}" if last else "")

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
