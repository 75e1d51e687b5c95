"""What people attach to a layer besides its parameters: hooks, which its successor is given, and what keeps it."""

from __future__ import annotations

from torch import nn

__all__ = ["give_hooks", "own_forward", "what_stays"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OF_HOOKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)


def own_forward(module: nn.Module) -> str | None:
    """Why a layer must stay as it is for a ``forward`` of its own, or None."""
    if "forward" not in module.__dict__:
        return None
    return (
        "its forward was replaced on the module itself, as accelerate does"
        " (accelerate.hooks.remove_hook_from_module): undo that first"
    )


def what_stays(module: nn.Module) -> str | None:
    """Why a layer must stay as it is for what is attached to it, or None."""
    replaced = own_forward(module)
    if replaced is not None:
        return replaced
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"a hook is registered on its {name}, whose place another Parameter would take: remove it first"
    return None


def give_hooks(old: nn.Module, new: nn.Module) -> None:
    """Let a successor have a module's hooks of calls; the handles that were given for them remove them there, too."""
    from torch.nn.utils.prune import BasePruningMethod  # not needed to import dendnorm

    for name in _HOOKS:
        hooks = old.__dict__[name]
        # Of a pruned layer the mask is in its values.
        pruned = {key: hook for key, hook in hooks.items() if isinstance(hook, BasePruningMethod)}
        if pruned:
            hooks = type(hooks)((key, hook) for key, hook in hooks.items() if key not in pruned)
        if hooks:
            new.__dict__[name] = hooks
    for name in _OF_HOOKS:
        new.__dict__[name] = old.__dict__[name]
