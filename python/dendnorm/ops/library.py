"""The compiled ops, ``torch.ops.dendnorm.*``."""

from __future__ import annotations

from typing import Any

import torch

try:
    from .. import _C
except ImportError as error:
    raise ImportError(
        f"dendnorm: the compiled module dendnorm._C could not be loaded ({error}). Build it against the installed torch"
        f" ({torch.__version__}) with `pip install --no-build-isolation .` in a checkout of dendnorm."
    ) from error

__all__ = [
    "assign_",
    "build_info",
    "carry_",
    "check_pattern",
    "counter_normal",
    "cpu_capability",
    "cuda_plan",
    "effective_weight",
    "empty_positions",
    "excise",
    "excitability_start",
    "frozen_linear",
    "has_kernel",
    "pattern_mark",
    "raise_fault",
    "raw_values",
    "replace_connections",
    "sparse_linear",
    "transpose_pattern",
    "value_deviation",
    "weakest",
]

# The code of a status, as csrc/core/status.h has it, where nothing is wrong.
CLEAR = 2**63 - 1

# The overload itself: resolving the packet anew costs more than a microsecond on every call.
sparse_linear = torch.ops.dendnorm.sparse_linear.default
sparse_linear_backward = torch.ops.dendnorm.sparse_linear_backward.default
effective_weight = torch.ops.dendnorm.effective_weight.default
effective_weight_backward = torch.ops.dendnorm.effective_weight_backward.default
sampled_product = torch.ops.dendnorm.sampled_product.default
frozen_linear = torch.ops.dendnorm.frozen_linear.default
check_pattern = torch.ops.dendnorm.check_pattern.default
transpose_pattern = torch.ops.dendnorm.transpose_pattern.default
pattern_mark = torch.ops.dendnorm.pattern_mark.default
empty_positions = torch.ops.dendnorm.empty_positions.default
counter_normal = torch.ops.dendnorm.counter_normal.default
weakest = torch.ops.dendnorm.weakest.default
excise = torch.ops.dendnorm.excise.default
replace_connections = torch.ops.dendnorm.replace_connections.default
carry_ = torch.ops.dendnorm.carry_.default
assign_ = torch.ops.dendnorm.assign_.default
raise_fault = torch.ops.dendnorm.raise_fault.default
raw_values = torch.ops.dendnorm.raw_values.default


def _keep(check: torch._ops.OpOverload) -> None:
    """Compilers drop an op that returns nothing and changes nothing, unless it is said to have an effect: to raise."""
    try:
        from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

        _register_effectful_op(check, _EffectType.ORDERED)
    except (ImportError, AttributeError):  # private names, which may move
        torch.fx.node.has_side_effect(check)


_keep(check_pattern)
_keep(raise_fault)


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether this build has a kernel of ``dendnorm::op`` for a device."""
    key = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"dendnorm::{op}", key)


def build_info() -> dict[str, Any]:
    """How the compiled module was built: version, torch, compiler, build_type, cuda (None: without)."""
    return dict(_C.build_info())


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: "default", "avx2" or "avx512"."""
    return _C.cpu_capability()


def cuda_plan(inputs: int, outputs: int, connections: int, samples: int, **device: float) -> dict[str, dict[str, Any]]:
    """Which CUDA kernels a training step takes, and what their cost model predicts; needs no GPU and no CUDA build.

    Args:
        inputs: width of the layer's input; outputs: of its output.
        connections: how many there are.
        samples: of the batch.
        **device: ``processors``, ``shared_bytes``, ``l2_bytes``, ``memory_rate`` (bytes a second), of an H100 unless
            given; ``element``, bytes of an activation, is 4 unless given.

    Returns:
        For "forward", "input gradient" and "weight gradient": ``kernel``, ``lanes``, ``seconds`` (calculated),
        ``bytes`` of activations loaded, and the ``level`` they come from: "shared", "l2" or "memory".

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
