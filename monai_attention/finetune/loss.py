"""Dice and cross-entropy where some voxels were not annotated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monai_attention.finetune import processes

_CHUNK_NUMBERS = {"cpu": 1 << 20}
_DEFAULT_CHUNK_NUMBERS = 1 << 24
"""Numbers of logits that are worked on at a time: on the CPU what fits the cache, elsewhere 64 MB."""

_LEAST_DICE = 1e-6
"""Of a class that is there; a logarithm needs one. Far below what softmax gives a class that it does not expect."""


class PartialDiceCE(nn.Module):
    """Soft Dice loss (Milletari et al. 2016, arXiv:1606.04797) plus cross-entropy, of the voxels that were annotated.

    Where a class was not annotated in a case, its voxels were given to the background, and must not be learned from:
    label as `ignored` every voxel that could be of it. Such voxels take no part in either term.

    The Dice is averaged over the classes that a sample has; that a class is absent is the cross-entropy's to teach.

    Not `monai.losses.DiceCELoss`: in 1.6.1 it knows no ignored label (its cross-entropy and its one-hot form fail on
    255), an absent class costs nearly 1 whatever is predicted, until its gradient jumps when next to nothing of it is
    left, and it keeps several copies of all logits for the backward pass. Here these are made again, some slabs of
    voxels at a time. Without ignored voxels and absent classes both give the same.

    Where several processes train, all must call it at once: it divides by the classes and voxels of all their samples,
    so that the mean of their losses, and of their gradients, is that of the whole batch.

    Args:
        ignored: the label of voxels that count for nothing.
        log_dice: the negative logarithm of each Dice in place of 1 - Dice (Wong et al. 2018, arXiv:1809.00076, with
            exponent 1). A class of which nothing is found yet then pulls as much as the others; with many small
            classes a network trained from the start finds them much sooner.

    Shape: logits (B, C, *S), or a tuple of them, finest first, (B, C, *S / 2**k) rounded up along axes that are halved;
        labels (B, 1, *S), whole numbers of any type -> one number, float32. Of a tuple the weighted mean, each weight
        half of the one before.

    Raises:
        ValueError: shapes do not fit, or a label is neither a class nor `ignored` (not seen by a CUDA graph).
    """

    def __init__(self, ignored: int = 255, log_dice: bool = False) -> None:
        super().__init__()
        self.ignored = ignored
        self.log_dice = log_dice

    def forward(self, logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """How wrong the logits are; 0 for nothing but ignored voxels."""
        scales = [logits] if isinstance(logits, Tensor) else list(logits)
        self._check(scales, labels)
        weights = [0.5**k for k in range(len(scales))]
        losses = [self._one(x, thinned(labels, x.shape[2:])) for x in scales]
        return torch.stack([w * one for w, one in zip(weights, losses, strict=True)]).sum() / sum(weights)

    def _one(self, logits: Tensor, labels: Tensor) -> Tensor:
        overlap, predicted, there, entropy = _Sums.apply(logits, labels, self.ignored)
        present = there > 0
        dice = 2 * overlap / (predicted + there).clamp(min=1)
        missed = -dice.clamp(min=_LEAST_DICE).log() if self.log_dice else 1 - dice
        classes, voxels = processes.total(torch.stack([present.sum().float(), there.sum()])).clamp(min=1)
        return processes.count() * ((missed * present).sum() / classes + entropy / voxels)

    def _check(self, scales: Sequence[Tensor], labels: Tensor) -> None:
        finest = scales[0]
        if labels.shape != (len(finest), 1, *finest.shape[2:]):
            expected = (len(finest), 1, *finest.shape[2:])
            raise ValueError(f"labels must have shape {expected} for these logits; got {tuple(labels.shape)}")
        if labels.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # looking waits for the GPU, which a recording forbids
        classes = finest.shape[1]
        wrong = (labels != self.ignored) & ((labels < 0) | (labels >= classes) | (labels % 1 != 0))
        if wrong.any():
            bad = labels[wrong][0].item()
            raise ValueError(
                f"labels must be whole, 0 to {classes - 1}, or {self.ignored} for ignored voxels; got {bad:g}"
            )


class _Sums(torch.autograd.Function):
    """Of some voxels: overlap, predicted and true volume of each class, (B, C), and the cross-entropy of them all.

    Slab by slab in float32, and once more for the gradient. With p the probabilities, y the label, and o, v and e the
    gradients of overlap, predicted volume and cross-entropy, that of the logit of class c is
    p_c (v_c + e - sum_k v_k p_k - o_y p_y), and where c is y also o_y p_y - e.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, labels)
        ctx.ignored = ignored
        wide = torch.float32 if logits.device.type == "mps" else torch.float64  # summed one voxel after the other
        overlap, there = logits.new_zeros(2, *logits.shape[:2], dtype=wide)
        predicted = logits.new_zeros(logits.shape[:2], dtype=torch.float32)
        entropy = predicted.new_zeros(())
        with torch.autocast(logits.device.type, enabled=False):
            for _, piece, own, known in _slabs(logits, labels, ignored):
                exact = piece.log_softmax(dim=1)
                right = exact.gather(1, own)
                entropy -= (right * known).sum()
                overlap.scatter_add_(1, own.flatten(1), (right.exp() * known).flatten(1).to(wide))
                there.scatter_add_(1, own.flatten(1), known.flatten(1).to(wide))
                predicted += (exact.exp_().flatten(2) @ known.flatten(2).mT).squeeze(2)
        there = there.float()
        ctx.mark_non_differentiable(there)
        return overlap.float(), predicted, there, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, overlap: Tensor, predicted: Tensor, _: Tensor, entropy: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for place, piece, own, known in _slabs(logits, labels, ctx.ignored):
                probability = piece.softmax(dim=1)
                right = overlap.gather(1, own.flatten(1)).view_as(own) * probability.gather(1, own)
                mean = (predicted[:, None] @ probability.flatten(2)).view_as(own) + right
                probability *= predicted.view(*predicted.shape, *[1] * (piece.ndim - 2)) + (entropy - mean)
                probability.scatter_add_(1, own, right - entropy)
                torch.mul(probability, known, out=gradient[place])
        return gradient, None, None


def _slabs(logits: Tensor, labels: Tensor, ignored: int) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor, Tensor]]:
    """Some voxels at a time: where, logits in float32, labels, 0 for ignored ones, and 1 for those that count or 0."""
    numbers = _CHUNK_NUMBERS.get(logits.device.type, _DEFAULT_CHUNK_NUMBERS)
    thickness = max(1, numbers // logits[:, :, 0].numel())
    for start in range(0, logits.shape[2], thickness):
        place = (slice(None), slice(None), slice(start, start + thickness))
        known = labels[place] != ignored
        yield place, logits[place].float(), labels[place].long() * known, known.float()


def thinned(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels of voxels at the middle of coarser ones, (B, 1, *S) -> (B, 1, *size), size = ceil(S / 2**k) by axis."""
    for axis, (n, m) in enumerate(zip(labels.shape[2:], size, strict=True), start=2):
        step = 1 << (-(-n // m) - 1).bit_length()
        places = torch.arange(m, device=labels.device) * step + step // 2
        labels = labels.index_select(axis, places.clamp(max=n - 1)) if step > 1 else labels
    return labels
