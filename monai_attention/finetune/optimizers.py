"""Optimizers for training a network from the start in few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon for what maps channels to channels, AdamW for everything else, at one learning rate.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon.
    Its steps are scaled to be as large as AdamW's: Liu et al., "Muon is scalable for LLM training", 2025,
    arXiv:2502.16982. Both are torch's: this lets a schedule, an engine and a checkpoint take them for one, and shows
    Muon, which takes matrices alone, convolutions as such: (channels, channels times kernel).

    Args:
        params: with their names, as `Module.named_parameters` gives them; contiguous.
        outer: beginnings of the names of layers that take the image or give the answer: they are AdamW's too, as are
            numbers on one axis (biases, norms). Muon would make the first answers swing.
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
        inner = {name for name, p in named if p.ndim > 1 and not name.startswith(tuple(outer))}
        self._shaped = [p for name, p in named if name in inner]
        self._flat = [p.detach().view(len(p), -1) for p in self._shaped]
        rest = [p for name, p in named if name not in inner]
        self._muon = Muon(self._flat, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(rest, lr=lr, weight_decay=weight_decay)
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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of all parameters."""
        super().zero_grad(set_to_none)
        for p in self._shaped:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for flat, shaped in zip(self._flat, self._shaped, strict=True):
            flat.grad = None if shaped.grad is None else shaped.grad.reshape(flat.shape)
        self._muon.step()
        self._adamw.step()
        return loss
