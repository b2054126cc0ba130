"""This module finds roots by Brent's method with the same digits as scipy.optimize.brentq.

It follows brentq step for step, so that every digit of its answers stays. It is in plain Python
because importing scipy.optimize takes 0.15 CPU-seconds, more than a thousand jobs do.
"""

from __future__ import annotations

from collections.abc import Callable


def root(f: Callable[[float], float], a: float, b: float, *, xtol: float, rtol: float, most: int = 100) -> float:
    """Return a zero of f between a and b, to within xtol + rtol * |zero|.

    f must have opposite signs at a and b. Raises ValueError where it has not, or where no zero is
    found in `most` steps.
    """
    before, now = a, b
    f_before, f_now = f(before), f(now)
    if f_before == 0.0:
        return before
    if f_now == 0.0:
        return now
    if (f_before < 0.0) == (f_now < 0.0):
        raise ValueError(f"no change of sign between {a} and {b}")
    other = f_other = step_before = step = 0.0  # `other`: the far side of the bracket
    for _ in range(most):
        if f_before != 0.0 and f_now != 0.0 and (f_before < 0.0) != (f_now < 0.0):
            other, f_other = before, f_before
            step_before = step = now - before
        if abs(f_other) < abs(f_now):
            before, now, other = now, other, now
            f_before, f_now, f_other = f_now, f_other, f_now
        delta = (xtol + rtol * abs(now)) / 2
        half = (other - now) / 2
        if f_now == 0.0 or abs(half) < delta:
            return now
        trial = None
        if abs(step_before) > delta and abs(f_now) < abs(f_before):
            if before == other:  # secant
                trial = -f_now * (now - before) / (f_now - f_before)
            else:  # inverse quadratic
                slope = (f_before - f_now) / (before - now)
                across = (f_other - f_now) / (other - now)
                trial = -f_now * (f_other * across - f_before * slope) / (across * slope * (f_other - f_before))
        if trial is not None and 2 * abs(trial) < min(abs(step_before), 3 * abs(half) - delta):
            step_before, step = step, trial
        else:
            step_before = step = half
        before, f_before = now, f_now
        if abs(step) > delta:
            now += step
        else:
            now += delta if half > 0 else -delta
        f_now = f(now)
    raise ValueError(f"no zero found between {a} and {b} in {most} steps")
