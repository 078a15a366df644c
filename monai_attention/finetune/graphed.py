"""Work on a GPU that does not wait for Python: recorded once as a CUDA graph, then replayed.

A training step of a small network is thousands of short commands, and a fast GPU is done with each before Python sends
the next. Ng et al., "Accelerating PyTorch with CUDA graphs", pytorch.org/blog/accelerating-pytorch-with-cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor

WARM_UP = 3
"""Calls before recording, as torch asks for."""


class Recorded:
    """A function of tensors, recorded at its first call if they lie on a GPU; elsewhere simply called.

    On a GPU what it returns is overwritten by the next call, and it is called some times more while it is recorded. It
    must not look at numbers (`item`, `any`), which waits for the GPU.

    Args:
        function: of one or more tensors, all of them on one device.
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
            self._record(tuple(x.detach().clone() for x in tensors))
        expected, got = ([tuple(x.shape) for x in each] for each in (self.given, tensors))
        if expected != got:
            raise ValueError(f"expected tensors of the same shapes every time, {expected}; got {got}")
        for mine, yours in zip(self.given, tensors, strict=True):
            mine.copy_(yours)
        self.graph.replay()
        return self.result

    def _record(self, given: tuple[Tensor, ...]) -> None:
        with torch.cuda.device(given[0].device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.function(*given)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=aside):
                self.result = self.function(*given)
        self.given = given


class RecordedUpdate:
    """The `iteration_update` of MONAI's `SupervisedTrainer`: its own, but on a GPU recorded from batch to gradients.

    Batches are of one shape; network, loss and inferer do not look at numbers, so that labels are checked in the first
    batch alone; what is frozen stays so. The first batch is worked on some times more, which statistics of batches
    notice. Autocast belongs into the inferer. Of the events within a step only the last, `MODEL_COMPLETED`, is fired,
    and the output has no prediction.
    """

    def __init__(self) -> None:
        self.recorded: Recorded | None = None

    def __call__(self, engine: SupervisedTrainer, batchdata: Any) -> Any:
        """One step.

        Args:
            engine: gives network, inferer, loss and optimizer.
            batchdata: what its data loader gives.

        Returns:
            Image, label and loss, under MONAI's keys; as the trainer's handlers of `MODEL_COMPLETED` leave them, it
            takes samples apart.

        Raises:
            ValueError: the trainer scales gradients (`amp`) or adds them up over several batches.
        """
        if engine.amp or getattr(engine, "accumulation_steps", 1) != 1:
            raise ValueError("expected a trainer without amp that steps after every batch")
        images, targets = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        if self.recorded is None:
            self.recorded = Recorded(lambda *batch: _loss_and_gradients(engine, *batch))
        engine.network.train()
        loss, gradients = self.recorded(images, targets)
        for p, gradient in zip(engine.network.parameters(), gradients, strict=True):
            p.grad = gradient  # a replay writes where it did before, even if others have reset gradients since
        engine.optimizer.step()
        engine.state.output = {CommonKeys.IMAGE: images, CommonKeys.LABEL: targets, CommonKeys.LOSS: loss}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def _loss_and_gradients(engine: SupervisedTrainer, images: Tensor, targets: Tensor) -> tuple[Tensor, list[Any]]:
    """The loss of a batch, and of each of the network's parameters the gradient, or None."""
    engine.optimizer.zero_grad(set_to_none=True)
    loss = engine.loss_function(engine.inferer(images, engine.network), targets).mean()
    loss.backward()
    return loss.detach(), [p.grad for p in engine.network.parameters()]
