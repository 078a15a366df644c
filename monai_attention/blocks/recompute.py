"""Activation checkpointing: trade time for memory in training (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as recompute_in_backward

import monai_attention.blocks.window_attention  # noqa: F401  registers the operator that is named below

_aten = torch.ops.aten
_DEAR = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.monai_attention.window_attention.default,
]
"""Operators whose results `selective` keeps: products. The rest is normalisation, activation, and moving of numbers."""
_DROPPING = {
    _aten._scaled_dot_product_flash_attention.default: 3,
    _aten._scaled_dot_product_efficient_attention.default: 5,
    _aten._scaled_dot_product_cudnn_attention.default: 5,
}
"""Those of them that may draw random numbers, and which argument is the rate of dropout."""


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What draws random numbers is done again, for what comes after it draws others if it is not."""
    place = _DROPPING.get(operator)
    if place is not None and kwargs.get("dropout_p", args[place] if len(args) > place else 0.0):
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE if operator in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE


def run(module: nn.Module, *inputs: Tensor, checkpoint: bool | str) -> Any:
    """Call a module, in training perhaps without keeping all of its activations for the backward pass.

    The numbers do not change.

    Args:
        module: what to call.
        inputs: its arguments; they are kept in any case.
        checkpoint: False: keep all activations; True: keep none, and compute them again in the backward pass, which
            costs about a forward pass; "selective": keep the results of products (convolutions, linear layers,
            attention), and compute the rest again, which costs little.

    Raises:
        ValueError: another `checkpoint`.
    """
    if checkpoint not in (False, True, "selective"):
        raise ValueError(f"use_checkpoint must be False, True or 'selective'; got {checkpoint!r}")
    if not (checkpoint and module.training and torch.is_grad_enabled()):
        return module(*inputs)
    if checkpoint == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
        return recompute_in_backward(module, *inputs, use_reentrant=False, context_fn=contexts)
    return recompute_in_backward(module, *inputs, use_reentrant=False)
