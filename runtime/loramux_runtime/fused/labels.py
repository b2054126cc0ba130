"""This module names the label of tokens that are not learned.

There is no torch in here: rows are read by processes that do not need it.
"""

from __future__ import annotations

from typing import Final

IGNORED: Final = -100
"""Label of a token that is not learned (Hugging Face's)."""
