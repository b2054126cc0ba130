"""One zygote for all tests of a file, and one run that nobody disturbs for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .serving import curves, jobs, play, submit
from .zygote import Zygote

Curves = dict[str, Any]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote()
    yield found
    found.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """Curves of five jobs that run to their end under fifo."""
    folder = tmp_path_factory.mktemp("whole")
    store = submit(folder / "state", jobs(folder, 5))
    assert play(store, "fifo").failed == 0
    return curves(store)
