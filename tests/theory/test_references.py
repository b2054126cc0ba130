"""The oracles themselves.

References against hand cases, an exact O(n^2) machine in fractions, and the closed forms.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from . import closed_forms as forms
from . import references as ref

Array = NDArray[np.float64]
Reference = Callable[[Array, Array], Array]
ONE_SERVER: dict[str, tuple[Reference, Callable[[forms.SizeLaw, float], float]]] = {
    "fcfs": (ref.fcfs, forms.fcfs),
    "ps": (ref.ps, forms.ps),
    "srpt": (ref.srpt, forms.srpt),
    "psjf": (ref.psjf, forms.psjf),
    "sjf": (ref.sjf, forms.sjf),
    "las": (ref.las, forms.las),
}
LAWS = {
    law.name: law
    for law in (
        forms.exponential(),
        forms.deterministic(),
        forms.hyperexponential(),
        forms.lognormal(),
        forms.uniform(),
    )
}


def poisson(rng: np.random.Generator, rate: float, n: int) -> Array:
    return np.cumsum(rng.exponential(1 / rate, n))


# --- closed forms -------------------------------------------------------------------------------

PUBLISHED = {  # in the order fcfs, ps, srpt, psjf, sjf, las
    ("hyperexp", 0.8): (14.000, 5.000, 2.185, 2.413, 5.058, 3.731),
    ("exp", 0.8): (5, 5, 2.3528, 2.6589, 2.8822, 5),
    ("exp", 0.9): (10, 10, 3.5521, 4.0518, 4.1969, 10),
    ("deterministic", 0.8): (3, 5, 3, 3, 3, 15),
}


@pytest.mark.parametrize(("law", "rho"), PUBLISHED)
def test_closed_forms_give_the_published_numbers(law: str, rho: float) -> None:
    got = [form(LAWS[law], rho) for _, form in ONE_SERVER.values()]
    assert got == pytest.approx(PUBLISHED[law, rho], abs=6e-4)


@pytest.mark.parametrize("scale", [1.0, 0.01, 3600.0])
@pytest.mark.parametrize("law", LAWS)
def test_size_laws_are_consistent(law: str, scale: float) -> None:
    """The moments, the partial moments, the tail and the density describe one law.

    Responses scale with the mean.
    """
    make = {"exp": forms.exponential, "lognormal": forms.lognormal, "uniform": forms.uniform}.get(law)
    shape = make(scale) if make else LAWS[law]
    far, x = np.array([shape.edges[1]]), np.array([0.3, 1.0, 2.5]) * shape.mean
    assert shape.part(far)[0] == pytest.approx(shape.mean)
    assert shape.part2(far)[0] == pytest.approx(shape.second)
    sizes = shape.sample(np.random.default_rng(5), 1_000_000)
    for limit, tail, part, part2 in zip(x, shape.tail(x), shape.part(x), shape.part2(x), strict=True):
        below = sizes * (sizes <= limit)
        assert np.mean(sizes > limit) == pytest.approx(tail, abs=0.003)
        assert below.mean() == pytest.approx(part, abs=0.005 * shape.mean)
        assert (below**2).mean() == pytest.approx(part2, abs=0.01 * shape.mean**2)
    for _, form in ONE_SERVER.values():
        unit = form(LAWS[law], 0.7)
        assert form(shape, 0.7) == pytest.approx(unit * shape.mean, rel=1e-6)


def test_orders_that_theory_promises() -> None:
    for law in LAWS.values():
        for rho in (0.5, 0.7, 0.8, 0.9):
            best = forms.srpt(law, rho)
            assert all(form(law, rho) >= best - 1e-9 for _, form in ONE_SERVER.values())
    # constant hazard
    assert forms.las(LAWS["exp"], 0.6) == pytest.approx(forms.ps(LAWS["exp"], 0.6))
    narrow = forms.uniform(1.0, low=0.999)
    assert forms.srpt(narrow, 0.8) > forms.fcfs(narrow, 0.8) - 0.01


def test_several_servers_and_curves() -> None:
    assert forms.mmc(1.0, 0.8, 1) == pytest.approx(5.0)
    assert forms.mmc(1.0, 0.8, 2) == pytest.approx(1 / (1 - 0.64))
    assert forms.mmc(2.0, 0.8, 4) == pytest.approx(2 * 1.745541, rel=1e-6)
    assert forms.co_running(1.0, 1.2, ref.linear_curve(0.3, 2.5)) == pytest.approx(1.8008, abs=5e-5)
    assert forms.co_running(1.0, 0.8, lambda n: 1.0) == pytest.approx(5.0)
    assert forms.co_running(1.0, 7.0, float) == pytest.approx(1.0)
    assert forms.co_running(1.0, 3.2, lambda n: float(min(n, 4))) == pytest.approx(forms.mmc(1.0, 0.8, 4))


def test_kaufman_roberts() -> None:
    blocking, utilisation = forms.kaufman_roberts(80, [(3, 6), (2, 10), (1, 24)])
    assert blocking == pytest.approx([0.0798, 0.1366, 0.3717], abs=5e-5)
    assert utilisation == pytest.approx(0.611, abs=5e-4)
    erlang_b, _ = forms.kaufman_roberts(2, [(1.0, 1)])
    assert erlang_b == pytest.approx([0.2])


# --- references by hand -------------------------------------------------------------------------

HAND: list[tuple[str, Callable[..., Array], list[float], list[float], list[float]]] = [
    ("fcfs", ref.fcfs, [0, 1, 2], [3, 1, 0.5], [3, 3, 2.5]),
    ("lindley", ref.lindley, [0, 1, 10], [3, 1, 1], [3, 3, 1]),
    ("sjf", ref.sjf, [0, 1, 2], [3, 1, 0.5], [3, 3.5, 1.5]),
    ("sjf takes the arrival of the very instant", ref.sjf, [0, 1, 3], [3, 2, 1], [3, 5, 1]),
    ("sjf equal sizes", ref.sjf, [0, 0, 0], [1, 1, 1], [1, 2, 3]),
    ("psjf by original size", ref.psjf, [0, 2.5], [3, 2], [5, 2]),
    ("srpt by what is left", ref.srpt, [0, 2.5], [3, 2], [3, 2.5]),
    ("srpt tie to the earlier", ref.srpt, [0, 1], [3, 2], [3, 4]),
    ("psjf tie to the earlier", ref.psjf, [0, 1], [2, 2], [2, 3]),
    ("ps", ref.ps, [0, 1], [2, 2], [3, 3]),
    ("ps three", ref.ps, [0, 0, 0], [1, 2, 3], [3, 5, 6]),
    ("las newcomer first", ref.las, [0, 2], [3, 1], [4, 1]),
    ("las shares one level", ref.las, [0, 1], [2, 2], [4, 3]),  # 1 alone to level 1 at t=2, then both to 2 at t=4
    ("las batch", ref.las, [0, 0, 0], [1, 2, 3], [3, 5, 6]),
    # job 1 waits at level 1 for job 2, climbs to level 2 at t=4.5, shares with job 0 up to level 3
    # at t=6.5
    ("las three levels", ref.las, [0, 2, 3], [4, 3, 0.5], [7.5, 4.5, 0.5]),
]


@pytest.mark.parametrize(("name", "reference", "arrival", "size", "expected"), HAND, ids=[row[0] for row in HAND])
def test_by_hand(
    name: str, reference: Callable[..., Array], arrival: list[float], size: list[float], expected: list[float]
) -> None:
    assert reference(arrival, size).tolist() == pytest.approx(expected)


def test_several_servers_by_hand() -> None:
    assert ref.fcfs([0, 0, 0], [3, 1, 1], servers=2).tolist() == [3, 1, 2]
    assert ref.sjf([0, 0, 0, 0], [3, 1, 2, 5], servers=2).tolist() == [4, 1, 2, 7]
    assert ref.srpt([0, 0, 1], [4, 3, 1], servers=2).tolist() == [5, 3, 1]
    # alone for 1 s, both at .75 until the first ends, then the second, half done, alone
    assert ref.shared([0, 1], [2, 2], ref.linear_curve(0.5, 2)).tolist() == pytest.approx([1 + 4 / 3, 4 / 3 + 1])


def test_loss_by_hand() -> None:
    out = ref.loss([0, 1, 2, 3], [3, 1, 5, 1], [2, 2, 1, 2], 3)
    assert np.nan_to_num(out, nan=-1).tolist() == [
        3,
        -1,
        5,
        1,
    ]  # the third fits; the fourth comes just as the first leaves


# --- references against one slow, exact machine -------------------------------------------------

Job = tuple[Fraction, int, Fraction, Fraction]  # arrival, index, size, attained
Rates = Callable[[list[Job]], dict[int, Fraction]]


def exact(arrival: Array, size: Array, rates: Rates) -> list[float]:
    """Turnarounds of any rate rule, in fractions.

    Step to the next arrival, completion or meeting of two levels.
    """
    arrivals, sizes = [Fraction(a) for a in arrival], [Fraction(s) for s in size]
    attained = [Fraction(0)] * len(sizes)
    done: dict[int, Fraction] = {}
    now = Fraction(0)
    while len(done) < len(sizes):
        present = [
            (arrivals[i], i, sizes[i], attained[i]) for i in range(len(sizes)) if arrivals[i] <= now and i not in done
        ]
        rate = rates(present)
        steps = [a - now for a in arrivals if a > now]
        steps += [(s - level) / rate[i] for _, i, s, level in present if rate.get(i)]
        steps += [
            (high - low) / (rate[i] - rate.get(j, Fraction(0)))
            for _, i, _, low in present
            for _, j, _, high in present
            if rate.get(i, Fraction(0)) > rate.get(j, Fraction(0)) and low < high
        ]
        step = min(steps)
        now += step
        for _, i, s, _ in present:
            attained[i] += step * rate.get(i, Fraction(0))
            if attained[i] == s:
                done[i] = now
    return [float(done[i] - arrivals[i]) for i in range(len(sizes))]


def first(servers: int, key: Callable[[Job], tuple[Fraction, ...]], keep: bool = False) -> Rates:
    """The `servers` smallest by (key, arrival, index) run; with `keep`, whoever has begun stays."""

    def rates(present: list[Job]) -> dict[int, Fraction]:
        ranked = sorted(present, key=lambda job: (keep and not job[3], key(job), job[0], job[1]))
        return {i: Fraction(1) for _, i, _, _ in ranked[:servers]}

    return rates


def lowest(present: list[Job]) -> dict[int, Fraction]:
    floor = min((job[3] for job in present), default=Fraction(0))
    group = [job[1] for job in present if job[3] == floor]
    return {i: Fraction(1, len(group)) for i in group}


def sharing(curve: ref.Curve) -> Rates:
    return lambda present: {job[1]: Fraction(curve(len(present))) / len(present) for job in present}


EXACT: dict[str, tuple[Callable[..., Array], Rates]] = {
    "lindley": (ref.lindley, first(1, lambda job: (), keep=True)),
    "fcfs": (ref.fcfs, first(1, lambda job: (), keep=True)),
    "fcfs 3": (lambda a, s: ref.fcfs(a, s, 3), first(3, lambda job: (), keep=True)),
    "sjf": (ref.sjf, first(1, lambda job: (job[2],), keep=True)),
    "sjf 3": (lambda a, s: ref.sjf(a, s, 3), first(3, lambda job: (job[2],), keep=True)),
    "psjf": (ref.psjf, first(1, lambda job: (job[2],))),
    "srpt": (ref.srpt, first(1, lambda job: (job[2] - job[3],))),
    "srpt 3": (lambda a, s: ref.srpt(a, s, 3), first(3, lambda job: (job[2] - job[3],))),
    "ps": (ref.ps, sharing(lambda n: 1.0)),
    "curve": (lambda a, s: ref.shared(a, s, ref.linear_curve(0.25, 2.5)), sharing(ref.linear_curve(0.25, 2.5))),
    "las": (ref.las, lowest),
}


# Not las on the grid: thirds of a level are no floats, so a completion at an arrival's instant
# would hang on rounding.
@pytest.mark.parametrize(
    ("name", "grid"), [(name, False) for name in EXACT] + [(name, True) for name in EXACT if name != "las"]
)
def test_exact_machine_agrees(name: str, grid: bool) -> None:
    """Continuous times and sizes, or a grid of integers with many ties."""
    reference, rates = EXACT[name]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n, servers = 14, 3 if name.endswith("3") else 1
        if grid:
            arrival, size = (
                np.sort(rng.integers(0, 24 // servers, n)).astype(float),
                rng.integers(1, 4, n).astype(float),
            )
        else:
            arrival, size = poisson(rng, servers * 0.9, n), rng.exponential(1, n)
        assert reference(arrival, size).tolist() == pytest.approx(exact(arrival, size, rates), rel=1e-9)


def test_las_batches_share_a_level() -> None:
    """Simultaneous arrivals and equal sizes, at times where no completion can coincide."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrival, size = np.repeat(poisson(rng, 0.3, 5), 3), rng.integers(1, 4, 15) / 4
        assert ref.las(arrival, size).tolist() == pytest.approx(exact(arrival, size, lowest), rel=1e-9)


def test_srpt_is_optimal_on_one_machine() -> None:
    """No order of a batch beats it.

    Every other discipline is at least as slow on random streams.
    """
    size = [3.0, 1.0, 2.5, 0.5, 4.0]
    best = min(np.mean(np.cumsum(order)) for order in permutations(size))
    assert ref.srpt([0.0] * 5, size).mean() == pytest.approx(best)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        arrival, sizes = poisson(rng, 0.8, 500), rng.exponential(1, 500)
        least = ref.srpt(arrival, sizes).mean()
        assert all(reference(arrival, sizes).mean() >= least - 1e-9 for reference, _ in ONE_SERVER.values())


@pytest.mark.parametrize("name", ONE_SERVER)
def test_work_is_conserved(name: str) -> None:
    """One work-conserving server.

    The busy periods, so the last finish in each, are the same under every discipline.
    """
    rng = np.random.default_rng(11)
    arrival, size = poisson(rng, 0.8, 20_000), rng.exponential(1, 20_000)
    finish = arrival + ONE_SERVER[name][0](arrival, size)
    done = arrival + ref.lindley(arrival, size)
    idle = [i for i in range(1, len(arrival)) if arrival[i] > done[i - 1]]
    ends = [finish[a:b].max() for a, b in zip([0, *idle], [*idle, len(arrival)], strict=True)]
    assert ends == pytest.approx([done[b - 1] for b in [*idle, len(arrival)]], rel=1e-9)


# --- references against closed forms ------------------------------------------------------------


def within_standard_errors(means: list[float], expected: float, count: float = 4.0) -> None:
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - expected) <= count * error + 1e-9, (np.mean(means), expected, error)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ONE_SERVER)
def test_means_agree_with_closed_forms(name: str, law: str) -> None:
    reference, form = ONE_SERVER[name]
    means = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrival, size = poisson(rng, 0.6, 5_000), LAWS[law].sample(rng, 5_000)
        means.append(float(reference(arrival, size).mean()))
    within_standard_errors(means, form(LAWS[law], 0.6))


@pytest.mark.parametrize("law", LAWS)
def test_co_running_mean_for_any_sizes(law: str) -> None:
    means = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        arrival, size = poisson(rng, 1.2, 10_000), LAWS[law].sample(rng, 10_000)
        means.append(float(ref.shared(arrival, size, ref.linear_curve(0.3, 2.5)).mean()))
    within_standard_errors(means, forms.co_running(1.0, 1.2, ref.linear_curve(0.3, 2.5)))


def test_erlang_c_mean() -> None:
    means = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means.append(float(ref.fcfs(poisson(rng, 3.2, 10_000), rng.exponential(1, 10_000), 4).mean()))
    within_standard_errors(means, forms.mmc(1.0, 0.8, 4))


@pytest.mark.parametrize("law", LAWS)
def test_loss_blocking_for_any_sizes(law: str) -> None:
    classes = [(3.0, 6), (2.0, 10), (1.0, 24)]
    rng = np.random.default_rng(3)
    n = 200_000
    kind = rng.choice(3, n, p=[0.5, 1 / 3, 1 / 6])
    need = np.array([b for _, b in classes])[kind]
    lost = np.isnan(ref.loss(poisson(rng, 6.0, n), LAWS[law].sample(rng, n), need, 80))
    blocking, _ = forms.kaufman_roberts(80, classes)
    assert [lost[kind == k].mean() for k in range(3)] == pytest.approx(blocking, abs=0.01)


def test_references_survive_an_empty_and_a_single_job() -> None:
    for reference, _ in ONE_SERVER.values():
        assert reference(np.array([]), np.array([])).tolist() == []
        assert reference(np.array([5.0]), np.array([2.0])).tolist() == [2.0]
    assert ref.loss([], [], [], 3).tolist() == []
