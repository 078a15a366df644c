"""How sure a network is of each voxel, from the probabilities it gives; 0 is sure, 1 is as unsure as can be.

Neither figure knows of mistakes that the network makes with conviction: they order voxels of one image, and images of
one kind, by how much they deserve a look; they are not probabilities of being wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon's entropy, as a share of the most there can be with so many classes.

    Args:
        probabilities: add up to 1 along `dim`.
        dim: the classes.

    Returns:
        Shape of `probabilities` without `dim`, from 0 (one class has all) to 1 (all have the same).
    """
    most = math.log(max(2, probabilities.shape[dim]))
    total = torch.zeros_like(probabilities.select(dim, 0))
    for p in probabilities.unbind(dim):  # a class at a time: no copy of all of them
        total -= torch.xlogy(p, p)
    return total.div_(most).clamp_(0, 1)


def disagreement(probabilities: Sequence[Tensor], dim: int) -> Tensor:
    """How much several predictions contradict each other: the entropy of their mean, less the mean of their entropies.

    This is the mutual information of prediction and label (Houlsby et al. 2011, arXiv:1112.5745), over transformed
    inputs as in Wang et al. 2019, doi:10.1016/j.neucom.2019.01.103. Predictions that are all equally unsure, but the
    same, do not contradict each other.

    Args:
        probabilities: one or more of the same shape; each adds up to 1 along `dim`.
        dim: the classes.

    Returns:
        Shape of each without `dim`, from 0 (all the same) to 1.
    """
    together = entropy(torch.stack(list(probabilities)).mean(dim=0), dim)
    apart = torch.stack([entropy(p, dim) for p in probabilities]).mean(dim=0)
    return (together - apart).clamp_(min=0)
