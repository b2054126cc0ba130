"""This module ends a run on SIGTERM or SIGINT: at the next step boundary, or at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn, Self

_STOPS: Final = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR: Final = b"\x1b[?25h"


def _nothing(_number: int, _frame: object) -> None:
    """Do nothing: the signal has been written into the pipe."""


@contextmanager
def stop_on_signal(request_stop: Callable[[], None]) -> Iterator[list[int]]:
    """Turn the first SIGTERM or SIGINT into a stop at the next step boundary.

    A second one acts as before.
    """
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield got
        return
    before = {number: signal.getsignal(number) for number in _STOPS}

    def stop(number: int, _: object) -> None:
        got.append(number)
        request_stop()
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Answers SIGTERM and SIGINT in a thread of its own, whatever the main thread is in.

    A handler in Python would wait for the end of a call into C (a fused step, a tokenizer, a load
    of 15 GB). Before `training` is entered the first signal ends the process; in it the first one
    asks for a stop at the next step boundary; after it the first one changes nothing but the exit
    code. A second one ends the process at once. `before_end` is called with the signal before
    the process ends by its first: nothing is in memory then that would have to be kept.
    """

    def __init__(self, before_end: Callable[[int], None]) -> None:
        self._before_end = before_end
        self._request_stop: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._before: dict[int, object] = {}
        self.got: list[int] = []
        """The signals that came."""

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in _STOPS:
            # the kernel's handler writes the number into the pipe; nothing is left to be done here
            self._before[number] = signal.signal(number, _nothing)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            # on its way out after a signal, the process ends at once with another
            signal.signal(number, signal.SIG_DFL if self.got else handler)  # type: ignore[arg-type]
        os.write(self._writing, b"\0")
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    @contextmanager
    def training(self, request_stop: Callable[[], None]) -> Iterator[list[int]]:
        """Have the first signal from now on ask for a stop instead of ending the process."""
        with self._lock:
            self._request_stop = request_stop
        yield self.got

    def hold(self) -> None:
        """Take the signals back from whoever has changed them: a policy is a user's code."""
        for number in self._before:
            if signal.getsignal(number) is not _nothing:
                signal.signal(number, _nothing)
        if self._before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

    def _listen(self) -> None:
        while number := os.read(self._reading, 1)[0]:
            if number not in _STOPS:
                continue
            with self._lock:
                self.got.append(number)
                if len(self.got) > 1:
                    self._end(number)
                if self._request_stop is None:
                    self._before_end(number)
                    self._end(number)
                self._request_stop()

    @staticmethod
    def _end(number: int) -> NoReturn:
        if os.isatty(2):
            # a progress bar has hidden it
            os.write(2, _SHOW_CURSOR)
        os._exit(128 + number)
