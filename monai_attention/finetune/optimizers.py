"""Optimizers for training a network from the start in few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from monai_attention.finetune.graphed import Recorded


class MuonAdamW(AdamW):
    """Muon for what maps channels to channels, AdamW for everything else, at one learning rate.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon.
    Its steps are scaled to be as large as AdamW's: Liu et al., "Muon is scalable for LLM training", 2025,
    arXiv:2502.16982.

    Not `torch.optim.Muon`: it takes matrices alone, where a convolution is one of (channels, channels times kernel),
    and orthogonalises in bfloat16, which a processor without instructions for it does many times slower than float32.

    Args:
        params: with their names, as `Module.named_parameters` gives them.
        outer: beginnings of the names of layers that take the image or give the answer: they are AdamW's too, as is
            what is no layer's `weight` (tables of positions) or lies on one axis (norms). Muon would make the first
            answers swing.
        lr: of both.
        weight_decay: of both, decoupled.

    Raises:
        ValueError: nothing is left for one of them, or nothing is called as `outer` says.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        outer: Sequence[str] = (),
        lr: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        named = list(params)
        if strange := [start for start in outer if not any(name.startswith(start) for name, _ in named)]:
            raise ValueError(f"outer: no parameter's name begins with {', '.join(strange)}")
        inner = [p.ndim > 1 and name.endswith("weight") and not name.startswith(tuple(outer)) for name, p in named]
        muon, adamw = ([p for (_, p), own in zip(named, inner, strict=True) if own is which] for which in (True, False))
        if not muon or not adamw:
            raise ValueError(f"expected layers for Muon and for AdamW; got {len(muon)} and {len(adamw)}")
        groups: list[dict[str, Any]] = [{"params": muon, "momentum": 0.95}, {"params": adamw}]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        self._recorded: dict[tuple[torch.Size, ...], Recorded] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, an unpickled one, or after `load_state_dict`."""
        super().__setstate__(state)
        self._recorded = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        with torch.enable_grad():
            loss = closure() if closure else None
        muon, adamw = self.param_groups
        self._muon(**muon)
        self.param_groups = [adamw]
        try:
            super().step()
        finally:
            self.param_groups = [muon, adamw]
        return loss

    def _muon(self, params: Sequence[Tensor], lr: float, weight_decay: float, momentum: float, **_: Any) -> None:
        """Along the nearest orthogonal matrices to Nesterov's gradients."""
        params, gradients = [p for p in params if p.grad is not None], []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros(())  # AdamW asks every state for one when it is loaded
            state["step"] += 1
            mean = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
            gradients.append(p.grad.lerp(mean, momentum).flatten(1))  # type: ignore[union-attr]
        if not gradients:
            return
        shapes = tuple(matrix.shape for matrix in gradients)  # others once layers are frozen or thawed
        updates = self._recorded.setdefault(shapes, Recorded(_all_orthogonal))(*gradients)
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - lr * weight_decay).add_(update.view_as(p), alpha=-lr * 0.2 * math.sqrt(max(update.shape)))


def _all_orthogonal(*matrices: Tensor) -> list[Tensor]:
    """See `orthogonal`; those of one shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        groups.setdefault(tuple(matrix.shape), []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        found |= zip(places, orthogonal(torch.stack([matrices[place] for place in places])), strict=True)
    return [found[place] for place in range(len(matrices))]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1 (0.7 to 1.2).

    Those below about a thousandth of a matrix's norm stay smaller: five steps enlarge by at most 500.

    Five steps of Jordan's iteration, X -> (a + b A + c A²) X with A = X X^T. All steps' factors are polynomials of the
    first A, so that they are multiplied first, and the long side of the matrix is touched only twice.

    Shape: (B, M, N) -> (B, M, N), float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.float()
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram, factor = x @ x.mT, None
    for step in range(5):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        factor = polynomial if factor is None else polynomial @ factor
        gram = polynomial @ gram @ polynomial if step < 4 else gram
    return factor @ x
