"""Work on a GPU that does not wait for Python: recorded once as a CUDA graph, then replayed.

A training step of a small network is thousands of short commands, and a fast GPU is done with each before Python sends
the next. Ng et al., "Accelerating PyTorch with CUDA graphs", pytorch.org/blog/accelerating-pytorch-with-cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from monai.utils import CommonKeys
from torch import Tensor

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

WARM_UP = 3
"""Calls before recording, as torch asks for."""


class Recorded:
    """A function of tensors, recorded at its first call if they lie on a GPU; elsewhere simply called.

    What it returns is overwritten by the next call. It must not look at numbers (`item`, `any`) or change anything but
    what it makes; it is called some times more while it is recorded.

    Args:
        function: of one or more tensors.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.given: tuple[Tensor, ...] = ()

    def __call__(self, *tensors: Tensor) -> Any:
        """What the function returns.

        Raises:
            ValueError: tensors are not of the shapes that it was recorded for.
        """
        if not tensors[0].is_cuda:
            return self.function(*tensors)
        if not self.given:
            self._record(tensors)
        expected, got = ([tuple(x.shape) for x in each] for each in (self.given, tensors))
        if expected != got:
            raise ValueError(f"expected tensors of the same shapes every time, {expected}; got {got}")
        for mine, yours in zip(self.given, tensors, strict=True):
            mine.copy_(yours)
        self.graph.replay()
        return self.result

    def _record(self, tensors: tuple[Tensor, ...]) -> None:
        self.given = tuple(x.detach().clone() for x in tensors)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.function(*self.given)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.function(*self.given)


class RecordedUpdate:
    """The `iteration_update` of MONAI's `SupervisedTrainer`: its own, but on a GPU recorded from batch to gradients.

    Batches are of one shape. Network, loss and inferer do not look at numbers. Events between the parts of a step are
    not fired, and there is no gradient scaling (`amp=True`): autocast belongs into the inferer.
    """

    def __init__(self) -> None:
        self.recorded: Recorded | None = None

    def __call__(self, engine: SupervisedTrainer, batchdata: Any) -> dict[str, Tensor]:
        """One step.

        Args:
            engine: gives network, inferer, loss and optimizer.
            batchdata: what its data loader gives.

        Returns:
            Image, label and loss, under MONAI's keys.
        """
        images, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking)
        if self.recorded is None:
            self.recorded = Recorded(lambda *batch: _loss_and_gradients(engine, *batch))
        engine.network.train()
        loss = self.recorded(images, targets)
        engine.optimizer.step()
        return {CommonKeys.IMAGE: images, CommonKeys.LABEL: targets, CommonKeys.LOSS: loss}


def _loss_and_gradients(engine: SupervisedTrainer, images: Tensor, targets: Tensor) -> Tensor:
    engine.optimizer.zero_grad(set_to_none=True)  # gradients that are recorded must lie where a replay writes them
    loss = engine.loss_function(engine.inferer(images, engine.network), targets)
    loss.backward()
    return loss.detach()
