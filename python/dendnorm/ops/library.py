"""The compiled ops, ``torch.ops.dendnorm.*``."""

from __future__ import annotations

from typing import Any

import torch

from .. import _C

__all__ = [
    "assign_",
    "both_views",
    "build_info",
    "carry_",
    "check_pattern",
    "check_view",
    "connections_of_csr",
    "counter_normal",
    "cpu_capability",
    "cuda_plan",
    "effective_weight",
    "empty_positions",
    "excise",
    "excitability_start",
    "frozen_linear",
    "has_kernel",
    "home_of",
    "largest_connections",
    "name_of_norm",
    "norm_named",
    "pattern_mark",
    "pattern_of_keys",
    "plan_excision",
    "plan_rewiring",
    "raise_fault",
    "raw_values",
    "replace_connections",
    "share_of",
    "sparse_conv2d",
    "sparse_linear",
    "spread",
    "stamp_fits",
    "transpose_pattern",
    "transposed",
    "value_deviation",
    "weakest",
]

# The code of a status, as csrc/core/status.h has it, where nothing is wrong.
CLEAR = 2**63 - 1
MARKS = 8  # numbers of pattern_mark: whole ones below 2^8, which every floating type holds

# The overload itself: resolving the packet anew costs more than a microsecond on every call.
sparse_linear = torch.ops.dendnorm.sparse_linear.default
sparse_linear_backward = torch.ops.dendnorm.sparse_linear_backward.default
sparse_conv2d = torch.ops.dendnorm.sparse_conv2d.default
sparse_conv2d_backward = torch.ops.dendnorm.sparse_conv2d_backward.default
effective_weight = torch.ops.dendnorm.effective_weight.default
effective_weight_backward = torch.ops.dendnorm.effective_weight_backward.default
sampled_product = torch.ops.dendnorm.sampled_product.default
frozen_linear = torch.ops.dendnorm.frozen_linear.default
check_pattern = torch.ops.dendnorm.check_pattern.default
transpose_pattern = torch.ops.dendnorm.transpose_pattern.default
pattern_mark = torch.ops.dendnorm.pattern_mark.default
check_view = torch.ops.dendnorm.check_view.default
both_views = torch.ops.dendnorm.both_views.default
pattern_of_keys = torch.ops.dendnorm.pattern_of_keys.default
largest_connections = torch.ops.dendnorm.largest_connections.default
connections_of_csr = torch.ops.dendnorm.connections_of_csr.default
plan_excision = torch.ops.dendnorm.plan_excision.default
plan_rewiring = torch.ops.dendnorm.plan_rewiring.default
spread = torch.ops.dendnorm.spread.default
empty_positions = torch.ops.dendnorm.empty_positions.default
counter_normal = torch.ops.dendnorm.counter_normal.default
weakest = torch.ops.dendnorm.weakest.default
excise = torch.ops.dendnorm.excise.default
replace_connections = torch.ops.dendnorm.replace_connections.default
carry_ = torch.ops.dendnorm.carry_.default
assign_ = torch.ops.dendnorm.assign_.default
raise_fault = torch.ops.dendnorm.raise_fault.default
raw_values = torch.ops.dendnorm.raw_values.default

stamp_fits = _C.stamp_fits  # at once, as the ops: it is called whenever a layer is


def _keep(check: torch._ops.OpOverload) -> None:
    """Compilers drop an op whose results nobody reads, unless it is said to have an effect: to raise."""
    try:
        from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

        _register_effectful_op(check, _EffectType.ORDERED)
    except (ImportError, AttributeError):  # private names, which may move
        torch.fx.node.has_side_effect(check)


_keep(check_pattern)
_keep(check_view)
_keep(both_views)
_keep(raise_fault)


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether this build has a kernel of ``dendnorm::op`` for a device."""
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"dendnorm::{op}", key)


def home_of(op: str, device: torch.device) -> torch.device:
    """Where ``dendnorm::op`` works for tensors of a device: there, or on the CPU, which gives the same."""
    return device if has_kernel(op, device) else torch.device("cpu")


def transposed(
    compressed: torch.Tensor, indices: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The other view of a pattern that is known to be sound, and for each of its entries the position in this one."""
    device = compressed.device
    home = home_of("transpose_pattern", device)
    pointers, others, perm = transpose_pattern(compressed.to(home), indices.to(home), size, sound=True)
    return pointers.to(device), others.to(device), perm.to(device)


def build_info() -> dict[str, Any]:
    """How the compiled module was built: version, torch, compiler, build_type, cuda (None: without)."""
    return dict(_C.build_info())


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: "default", "neon", "avx2" or "avx512"."""
    return _C.cpu_capability()


def cuda_plan(inputs: int, outputs: int, connections: int, samples: int, **device: float) -> dict[str, dict[str, Any]]:
    """Which CUDA kernels a training step takes, and what their cost model predicts; needs no GPU and no CUDA build.

    Args:
        inputs: width of the layer's input; outputs: of its output.
        connections: how many there are.
        samples: of the batch.
        **device: ``processors``, ``shared_bytes``, ``l2_bytes``, ``memory_rate`` (bytes a second), of an H100 unless
            given; ``element``, bytes of an activation, is 4 unless given; ``tf32``: dense float32 products use it.

    Returns:
        For "forward", "input gradient" and "weight gradient": ``kernel``, ``lanes``, ``seconds`` (calculated),
        ``bytes`` of activations loaded, the ``level`` they come from ("shared", "l2" or "memory"), and
        ``dense_seconds``, of the same as a dense matrix product (calculated). The kernel of the weight gradient is
        "sampled", or "fused" with that of the input gradient, whose seconds and bytes are then those of both.

    Raises:
        ValueError: a size is not positive, or ``element`` not 2, 4 or 8.
    """
    return dict(_C.cuda_plan(inputs, outputs, connections, samples, **device))


def excitability_start(a: float, b: float, p: float, degree: float, deviation: float) -> float:
    """D of a neuron with so many connections, of values with this standard deviation: where e starts, so that w = v."""
    return _C.excitability_start(a, b, p, degree, deviation)


def value_deviation(degree: float, gain: float) -> float:
    """Standard deviation of a fresh layer's values, so that its output has about gain^2 times its input's variance."""
    return _C.value_deviation(degree, gain)


def norm_named(name: str) -> tuple[float, float, float, bool]:
    """a, b, p and whether there is one e for each neuron, of the name of a norm.

    Raises:
        ValueError: no norm has this name, or p in it is no number.
    """
    return _C.norm_named(name)


def name_of_norm(a: float, b: float, p: float, variable: bool, scales: bool) -> str:
    """The name of a norm, or its exponents where it has none; ``scales``: whether there is an excitability."""
    return _C.name_of_norm(a, b, p, variable, scales)


def share_of(share: float, count: int) -> int:
    """A share of a number, rounded half to even."""
    return _C.share_of(share, count)
