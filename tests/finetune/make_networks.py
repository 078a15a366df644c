"""Small forms of the segmentation networks, to be made for any channels and classes."""

from functools import partial

import torch

from monai_attention.networks.flex_swin_unetr import FlexSwinUNETR
from monai_attention.networks.flex_unetr import FlexUNETR
from monai_attention.networks.mbanet import MBANet
from monai_attention.networks.nnformer import NNFormer

_UNETR = {"patch_size": 4, "feature_size": 6, "hidden_size": 24, "mlp_size": 32, "num_heads": 2, "depth": 3}
_NNFORMER = {
    **{"patch_size": (2, 2, 2), "feature_size": 8, "depths": (2, 2, 1), "num_heads": (2, 2, 4), "window": (4, 2, 2)},
    **{"drop_path_rate": 0.0, "deep_supervision": True},
}

NETWORKS = {
    "FlexUNETR": partial(FlexUNETR, roi_size=(16, 16, 16), stem=True, **_UNETR),
    "FlexSwinUNETR": partial(FlexSwinUNETR, window=(3, 3, 3), feature_size=6, depths=(2, 1), num_heads=(2, 2)),
    "NNFormer": partial(NNFormer, roi_size=(16, 16, 16), **_NNFORMER),
    "MBANet": partial(MBANet, feature_size=8, depths=(1, 1, 1), groups=2, conv_groups=2),
}


def made(name, in_channels=1, out_channels=3, seed=0, **options):
    """A network whose every tensor has an influence, norms and biases included."""
    torch.manual_seed(seed)
    network = NETWORKS[name](in_channels, out_channels, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def logits(network, image):
    """Of every head, finest first."""
    with torch.no_grad():
        out = network.train()(image)
    return out if isinstance(out, tuple) else (out,)
