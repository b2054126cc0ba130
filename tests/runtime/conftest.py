"""One thread in every test of the runtime (two under load cost ten times the CPU time)."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
