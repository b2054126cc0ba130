"""Say in plain words that jobs bring more work than the devices can do."""

from __future__ import annotations

from collections.abc import Iterable


def overload_note(loads: Iterable[float]) -> str:
    """Return the sentence about the loads that are above 1; empty where there are none.

    An offered load is the work that jobs bring per second, over what the devices do one job at a
    time.
    """
    above = list(dict.fromkeys(f"{load:.3g}" for load in sorted(set(loads)) if load > 1.0))
    if not above:
        return ""
    shown = " / ".join(above[:3]) + (" / ..." if len(above) > 3 else "")
    return (
        f"Overload: the jobs offer {shown} times what the devices can do, one job at a time. Unless sharing a device "
        "gains as much, waiting grows for as long as jobs arrive, and means depend on the length of the trace."
    )
