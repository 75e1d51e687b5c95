"""A weight that is computed: by torch.nn.utils.parametrize, or by a hook of weight_norm, spectral_norm or prune."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["computed", "refuse_matrix_weight"]

# What takes a weight for a matrix and does something else, without a word, to the values of connections.
_OF_MATRICES = {
    ("torch.nn.utils.parametrizations", "_SpectralNorm"): "spectral_norm",
    ("torch.nn.utils.parametrizations", "_WeightNorm"): "weight_norm",
    ("torch.nn.utils.parametrizations", "_Orthogonal"): "orthogonal",
    ("torch.nn.utils.spectral_norm", "SpectralNorm"): "spectral_norm",
    ("torch.nn.utils.weight_norm", "WeightNorm"): "weight_norm",
}


def _matrix_function(step: object) -> str | None:
    return _OF_MATRICES.get((type(step).__module__, type(step).__name__))


def refuse_matrix_weight(module: nn.Module) -> None:
    """Refuse what computes a sparse layer's weight as if it were a matrix.

    Raises:
        ValueError: spectral_norm, weight_norm or orthogonal of ``torch.nn.utils``, in either form.
    """
    steps: list[object] = []
    parametrizations = module._modules.get("parametrizations")
    if parametrizations is not None:
        of_weight = parametrizations._modules.get("weight")
        steps += of_weight._modules.values() if of_weight is not None else []
        undo = 'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
    else:
        steps += [hook for hook in module._forward_pre_hooks.values() if getattr(hook, "name", None) == "weight"]
        undo = "torch.nn.utils.remove_{}(layer)"
    for step in steps:
        name = _matrix_function(step)
        if name is not None:
            instead = 'norm="weight_norm" normalises each row' if name == "weight_norm" else "to_dense() has a matrix"
            raise ValueError(
                f"{module._get_name()}: weight must not be computed by {name}, which is made for a matrix: a sparse"
                f" layer's weight is (nnz,), the values of its connections. Take it off with"
                f" {undo.format(name)}; {instead}"
            )


def computed(module: nn.Module, name: str) -> Any:
    """A parameter that a parametrization or a hook has moved."""
    if name == "weight":
        refuse_matrix_weight(module)
    return getattr(module, name)
