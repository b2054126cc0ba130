"""Say how large the values of a job may be, in one place for every reader.

The rows of a trace and the jobs of a jobs.yaml take their bounds from here, and so do the adapters'
configurations: what one of them accepts, the others accept too. The bounds keep every product and
quotient of two values a finite float, and what a file can have us allocate small. This is a module
of constants alone: where models are only built, pydantic is not installed.
"""

from __future__ import annotations

from typing import Final

MAX_RANK: Final = 4096
MAX_EXPERTS: Final = 1024
"""Experts of one layer; also the most that a token may be sent to (top_k)."""
SMALLEST: Final = 1e-12
"""Smallest alpha, and the smallest of every other number that must be above 0."""
LARGEST: Final = 1e12
"""Largest alpha, and the largest of every other number without a bound of its own."""
MIN_LR: Final = 1e-12
MAX_LR: Final = 1e3
MAX_STEPS: Final = 10**9
"""Optimizer steps of a job, and of anything counted in steps (warm-up, evaluations)."""
MAX_EPOCHS: Final = 1e6
MAX_SAMPLES: Final = 10**12
MAX_BATCH: Final = 65_536
"""Rows per optimizer step, and per micro-batch."""
MAX_TOKENS: Final = 1_048_576
"""Tokens of a row."""
MAX_SEED: Final = 2**63 - 1
MAX_PRIORITY: Final = 1_000_000
MAX_GPUS: Final = 4096
MIN_SECONDS: Final = 1e-9
MAX_SECONDS: Final = 1e10
"""Longest span of time in seconds, from the start of a trace or of a job."""
MAX_NAME: Final = 256
"""Characters of a user, a group, a data set or a field's name."""
MAX_NAMES: Final = 1000
"""Names in one list, such as the linears that an adapter changes."""
MAX_JOBS: Final = 10_000
"""Jobs in one jobs.yaml."""
