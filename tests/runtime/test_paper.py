"""The counter of steps on paper: its formulas against tensors, and one depth against another."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bench_paper import as_dict, step_on_paper, table  # noqa: E402
from paper_costs import KERNEL_S, MEMORY_BYTES, WIDE_GEMM_FLOPS, Cost, cost_of  # noqa: E402


def cost(func: Any, *args: Any, **kwargs: Any) -> Cost:
    return cost_of(func, args, kwargs, func(*args, **kwargs), 0.0)


def meta(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


def test_costs_are_those_of_the_tensors() -> None:
    aten = torch.ops.aten
    x, y, w = meta(64, 32), meta(64, 32), meta(32, 16)
    assert cost(aten.view.default, x, [32, 64]).kernels == 0
    assert cost(aten.add.Tensor, x, y) == Cost(1, 3 * 64 * 32 * 2, 0.0, KERNEL_S)
    assert cost(aten.add.Tensor, x, x).moved_bytes == 2 * 64 * 32 * 2  # read once
    assert cost(aten.mul.Tensor, x, meta(1, 32).expand(64, 32)).moved_bytes == (2 * 64 + 1) * 32 * 2
    product = cost(aten.mm.default, x, w)
    assert (product.flops, product.moved_bytes) == (2 * 64 * 32 * 16, 2 * (64 * 32 + 32 * 16 + 64 * 16))
    wide = cost(aten.mm.default, *(meta(4096, 4096, dtype=torch.float32) for _ in range(2)))
    assert wide.seconds == pytest.approx(2 * 4096**3 / WIDE_GEMM_FLOPS)
    large = cost(aten.clone.default, meta(1 << 14, 1 << 14))
    assert large.seconds == pytest.approx((1 << 30) / MEMORY_BYTES)
    index = torch.empty(10, dtype=torch.int64, device="meta")
    assert cost(aten.index_select.default, x, 0, index).moved_bytes == 2 * 10 * 32 * 2 + 80
    parts = [meta(100_000), meta(7)]
    assert cost(aten._foreach_mul.Scalar, parts, 2.0).kernels == 1


def test_two_depths_tell_a_third() -> None:
    """All of it is linear in the layers: 1 and 2 of them give 3."""
    asked: dict[str, Any] = {"model": "tinyllama-1.1b", "method": "lora", "jobs": 2, "lengths": "48,80"}
    one, two, three = (step_on_paper(**asked, dropout=True, layers=n) for n in (1, 2, 3))
    found, right = as_dict(one.deeper(two, 2)), as_dict(three)
    assert found.keys() == right.keys() and found["classes"].keys() == right["classes"].keys()
    for key in ("gb", "gb_outside_gemm", "tflop", "aten_calls"):
        assert found[key] == pytest.approx(right[key], rel=1e-9), key
    for key in ("kernels", "ms", "tokens_per_s"):  # small tensors of several layers share a kernel
        assert found[key] == pytest.approx(right[key], rel=2e-3), key
    assert right["reads_back"] == 0 and right["host_to_device_copies"] <= 16
    hidden, ffn, kv, vocab = 2048, 5632, 256, 32000
    weights = 3 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)
    frozen = right["classes"]["frozen GEMM"]["tflop"] * 1e12
    # forward, and the gradient of all inputs but the first layer's, whose embedding is frozen
    assert 2 * 2 * 256 * weights * 0.9 < frozen <= 2 * 2 * 256 * weights
    assert right["classes"]["head and loss"]["tflop"] * 1e12 >= 2 * 2 * 250 * hidden * vocab
    assert "frozen GEMM" in table(right)
