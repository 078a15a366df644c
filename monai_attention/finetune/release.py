"""From the weights that a training ended with to those of its bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from monai_attention.checkpoints import read_state_dict, release_weights
from monai_attention.finetune.lora import has_lora, lora_state, merge_lora
from monai_attention.io.write import replacing


def release(checkpoint: str | Path, network: nn.Module, bundle: str | Path) -> str:
    """Put trained weights into a bundle, adapters merged: `models/model.pt`, see `checkpoints.release_weights`.

    Adapters, and what was trained beside them, are also kept apart: `models/adapters.pt`, see `lora.load_lora`.

    Args:
        checkpoint: state dict of the network as it was trained.
        network: as it was trained, with adapters if it had some; they are merged in it.
        bundle: folder of the bundle.

    Returns:
        The hash of the file, hexadecimal.

    Raises:
        Refusal: the checkpoint is not there, or cannot be read; E-LOSS, its weights are no numbers.
    """
    network.load_state_dict(read_state_dict(checkpoint))
    adapters = lora_state(network) if has_lora(network) else None
    merge_lora(network)
    merged = Path(checkpoint).with_name("merged.pt")
    with replacing(merged) as temporary:
        torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, temporary)
    digest = release_weights(merged, bundle)
    if adapters is not None:
        with replacing(Path(bundle) / "models/adapters.pt") as temporary:
            torch.save(adapters, temporary)
    return digest
