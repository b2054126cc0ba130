"""One zygote for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .zygote import Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote()
    yield found
    found.close()
