"""One thread in every process of the tests.

Two beside other work spin for each other, and a step of 30 ms took 3 s.
"""

from __future__ import annotations

import gc
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def pytest_collection_finish() -> None:
    """What is imported by now stays.

    Measuring a peak collects garbage first, and need not look at all of torch.
    """
    gc.collect()
    gc.freeze()
