"""What a new bundle's `train.json` makes."""

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_attention.finetune.plan import Plan
from monai_attention.finetune.recipe import train_config
from tests.make_flexunetr_bundle import INFERENCE


def test_a_network_of_monai_has_right_gradients_of_thin_images_in_bfloat16():
    """See `blocks.convolution`; a plain layer would not."""
    network = {"_target_": "monai.networks.nets.BasicUNet", "features": [4, 4, 4, 4, 4, 4], "out_channels": 3}
    plan = Plan("full", (16, 16, 16), 2, 2, 2, 1, 1e-3, 0.75, mirror=False, network={})
    parser = ConfigParser(train_config(INFERENCE | {"network_def": network}, plan, trained={}, fold=0))
    parser["device"] = torch.device("cpu")
    kinds = {type(layer) for layer in parser.get_parsed_content("network").modules()}
    assert nn.ConvTranspose3d in kinds
    assert nn.Conv3d not in kinds
