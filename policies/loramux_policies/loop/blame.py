"""This module writes what a failing policy is told: when, over which jobs, devices and bytes.

Nothing here may fail itself, whatever text or object the policy hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from loramux_policies.errors import PolicyError, let_through
from loramux_policies.loop.cluster import Cluster
from loramux_policies.loop.job import Job
from loramux_policies.loop.waiting import OrderFault
from loramux_policies.policy import Policy
from loramux_policies.said import line_of, raised, text_of
from loramux_policies.views import Order

MOST_NAMED: Final = 3
"""Jobs, and devices, that a message names; it counts the others."""
TO_ASK: Final = (
    "before acting, a policy can ask plan.candidates(job), plan.fits(device, [job]), plan.free_bytes(device), "
    "plan.free_seats(device), view.device_of(job), view.waiting(n) and view.residents(device)"
)
"""What the view and the plan offer, at the end of a message about place()."""


def few(names: Iterable[str], count: int) -> str:
    """Return the first names of `count`, and how many more there are."""
    shown: list[str] = []
    for name in names:
        shown.append(text_of(name, 64))
        if len(shown) == MOST_NAMED:
            break
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def situation(cluster: Cluster) -> str:
    """Say how many jobs wait, and what runs on the first busy devices, in bytes."""
    waiting = cluster.n_waiting
    parts = [f"{waiting} {'job waits' if waiting == 1 else 'jobs wait'}"]
    if waiting:
        parts[0] += f" ({few((job.job_id for job in cluster.queue), waiting)})"
    busy = [ledger for ledger in cluster.fleet if ledger.jobs]
    parts += [
        f"device {ledger.device_id} holds {few(ledger.jobs, len(ledger.jobs))} "
        f"({ledger.used:,.0f} of {ledger.capacity:,.0f} bytes)"
        for ledger in busy[:MOST_NAMED]
    ]
    if len(busy) > MOST_NAMED:
        parts.append(f"{len(busy) - MOST_NAMED} more devices hold jobs")
    if not busy:
        sizes = [ledger.capacity for ledger in cluster.fleet]
        count = "one device" if len(sizes) == 1 else f"{len(sizes)} devices"
        parts.append(f"nothing runs ({count}, at most {max(sizes, default=0.0):,.0f} bytes each)")
    return "; ".join(parts)


def failed(
    policy: Policy, now_s: float, what: str, cluster: Cluster | None = None, hint: str = "", did: str = ""
) -> PolicyError:
    """Return the error of a policy, with its name and the time, and with what was there then.

    `hint`: what it can ask beforehand; `did`: a verb behind its name.
    """
    there = "" if cluster is None else f". Then: {situation(cluster)}"
    who = f"policy {text_of(policy.name, 80)}{did and f' {did}'}"
    return PolicyError(f"{who} at {now_s:.3f} s: {what}{there}{hint and f'; {hint}'}")


def wrong_order(policy: Policy, now_s: float, job: Job, error: BaseException) -> PolicyError:
    """Return the error of a policy whose order key raised, or does not put its jobs in an order."""
    fault = str(error) if isinstance(error, OrderFault) else raised(error)
    what = f"the order key of {job.job_id} {fault}"
    if isinstance(error, OrderFault) or not line_of(error):  # else the key function itself raised
        what += f"; it is {text_of(job.key[0], 120)}"
    other = error.other if isinstance(error, OrderFault) else None
    if other is not None:
        what += f", and that of {text_of(other.job_id, 64)} is {text_of(other.key[0], 120)}"
    return failed(
        policy,
        now_s,
        what,
        hint="a key is a tuple of numbers or texts, never NaN, that compare with those of every other job; it is "
        "asked for again after each pause, and moves=True says that it depends on attained_s or the clock",
    )


def check_policy(policy: Policy) -> None:
    """Raise PolicyError where an attribute of the policy has no meaning for the loop."""
    checks: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("name", lambda v: isinstance(v, str) and v != "", "a text"),
        ("order", lambda v: isinstance(v, Order) and callable(v.key), "an Order whose key is a function"),
        ("seats", lambda v: _number(v) and v >= 1, "a number of at least 1, or infinity"),
        ("max_fused", lambda v: v is None or (_number(v) and v >= 1), "None or a number of at least 1"),
        ("copies", lambda v: v in ("shared", "separate"), "shared or separate"),
        ("oracle", lambda v: isinstance(v, bool), "True or False"),
        ("slices", lambda v: isinstance(v, bool), "True or False"),
        ("preempts", lambda v: isinstance(v, bool), "True or False"),
    )
    who = type(policy).__name__
    for name, good, allowed in checks:
        try:
            value = getattr(policy, name)
            fine = good(value)
        except BaseException as error:
            let_through(error)
            raise PolicyError(f"policy {who}: its {name} {raised(error)}") from error
        if not fine:
            raise PolicyError(f"policy {who}: its {name} is {text_of(value, 80)}, not {allowed}")
        if name == "name":
            who = text_of(value, 80)


@contextmanager
def no_exit(policy: Policy) -> Iterator[None]:
    """Make a PolicyError of a policy's `sys.exit`: else the command ends as if all went well."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        let_through(error)
        raise PolicyError(f"policy {text_of(policy.name, 80)}: it {raised(error)}") from error


def _number(value: object) -> bool:
    return isinstance(value, int | float) and value == value
