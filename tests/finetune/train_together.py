"""What two processes do for `test_distributed`: `torchrun -m tests.finetune.train_together FOLDER BUNDLE ...`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from monai_attention.errors import Refusal
from monai_attention.finetune.loss import PartialDiceCE
from monai_attention.finetune.processes import everywhere, led, rank
from monai_attention.finetune.training import train

IGNORED = 255


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of two samples: of one a class is absent, of the other many voxels do not count."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=random)
    labels = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=random)
    labels[0][labels[0] == 2] = 0
    labels[1, :, :3] = IGNORED
    return logits, labels


@led
def trained(bundle: Path, *, device: str) -> None:
    """Train a bundle, all processes."""
    everywhere(train, bundle, 0, bundle, device=device)


def main(folder: str, bundles: Sequence[str]) -> None:
    """Train each bundle, and save what was refused; then the loss and its gradient, of this process's sample."""
    refused = {}
    for bundle in map(Path, bundles):
        try:
            trained(bundle, device="cpu")
        except Refusal as refusal:
            refused[bundle.name] = [refusal.code, refusal.message, refusal.told]
    Path(folder, f"refused{rank()}.json").write_text(json.dumps(refused))
    logits, labels = (whole[rank() :][:1] for whole in samples())
    logits.requires_grad_()
    loss = PartialDiceCE(IGNORED)(logits, labels)
    loss.backward()
    torch.save({"loss": loss.detach(), "gradient": logits.grad}, Path(folder, f"loss{rank()}.pt"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
