"""A process that has torch in memory and forks schedulers that may be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ...waiting import communicated
from . import serving


class Zygote:
    """Forks schedulers that can be killed, without loading torch for each."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, serving.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def serve(self, state: Path, **order: Any) -> int:
        """Exit code of one scheduler process, minus the signal where one killed it."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"state": str(state), **order}) + "\n")
        stdin.flush()
        return int(stdout.readline())

    def close(self) -> None:
        """End it."""
        communicated(self._process)
