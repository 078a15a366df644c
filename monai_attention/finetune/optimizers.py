"""Optimizers for training a network from the start in few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon for weight matrices, AdamW for everything else (convolutions, biases, norms), at one learning rate.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon.
    Its steps are scaled to be as large as AdamW's: Liu et al., "Muon is scalable for LLM training", 2025,
    arXiv:2502.16982. Both are torch's: this lets a schedule, an engine and a checkpoint take them for one.

    Args:
        params: with at least one matrix and one that is not.
        lr: of both.
        weight_decay: of both, decoupled.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        params = list(params)
        matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(others, lr=lr, weight_decay=weight_decay)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One state, and the same groups, here and in both parts."""
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`, which puts new groups and a new state in place."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        with torch.enable_grad():
            loss = closure() if closure else None
        self._muon.step()
        self._adamw.step()
        return loss
