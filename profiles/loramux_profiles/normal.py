"""This module computes the standard normal CDF with the same digits as scipy.special.ndtr.

It follows ndtr (Cephes, S. Moshier) step for step, so that every digit stays. It is in numpy
because importing scipy.special takes 0.1 CPU-seconds, as much as three thousand jobs do.
"""

from __future__ import annotations

from math import exp, sqrt
from typing import Final

import numpy as np

from loramux_traces.arrays import Floats

_SQRT_HALF: Final = sqrt(0.5)
_P: Final = (
    *(2.46196981473530512524e-10, 5.64189564831068821977e-1, 7.46321056442269912687, 4.86371970985681366614e1),
    *(1.96520832956077098242e2, 5.26445194995477358631e2, 9.34528527171957607540e2, 1.02755188689515710272e3),
    5.57535335369399327526e2,
)
_Q: Final = (
    *(1.0, 1.32281951154744992508e1, 8.67072140885989742329e1, 3.54937778887819891062e2, 9.75708501743205489753e2),
    *(1.82390916687909736289e3, 2.24633760818710981792e3, 1.65666309194161350182e3, 5.57535340817727675546e2),
)
_R: Final = (
    *(5.64189583547755073984e-1, 1.27536670759978104416, 5.01905042251180477414, 6.16021097993053585195),
    *(7.40974269950448939160, 2.97886665372100240670),
)
_S: Final = (
    *(1.0, 2.26052863220117276590, 9.39603524938001434673, 1.20489539808096656605e1, 1.70814450747565897222e1),
    *(9.60896809063285878198, 3.36907645100081516050),
)
_T: Final = (
    *(9.60497373987051638749, 9.00260197203842689217e1, 2.23200534594684319226e3, 7.00332514112805075473e3),
    5.55923013010394962768e4,
)
_U: Final = (
    *(1.0, 3.35617141647503099647e1, 5.21357949780152679795e2, 4.59432382970980127987e3, 2.26290000613890934246e4),
    4.92673942608635921086e4,
)


def _polynomial(x: Floats, coefficients: tuple[float, ...]) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _exp(x: Floats) -> Floats:
    """Compute exp by the C library, as scipy does.

    numpy's own exp differs from it in the last digit of one value in a hundred.
    """
    return np.array([exp(value) for value in x.tolist()])


def cdf(x: Floats) -> Floats:
    """Return P(Z <= x) for finite x, elementwise."""
    z = x * _SQRT_HALF
    size = np.abs(z)
    result = np.empty_like(z)
    near = size < 1.0
    middle = z[near]
    square = middle * middle
    result[near] = 0.5 + 0.5 * (middle * _polynomial(square, _T) / _polynomial(square, _U))
    for within, p, q in ((~near & (size < 8.0), _P, _Q), (size >= 8.0, _R, _S)):
        far = size[within]
        if len(far):
            tail = 0.5 * (_exp(-far * far) * _polynomial(far, p) / _polynomial(far, q))
            result[within] = np.where(z[within] > 0.0, 1.0 - tail, tail)
    return result
