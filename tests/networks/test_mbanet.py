import pytest
import torch

from monai_attention.blocks.shuffle import ShuffleAttention
from monai_attention.networks.mbanet import MBANet


def test_attention_follows_every_encoder_stage_and_filters_every_skip():
    with torch.device("meta"):
        network = MBANet(4, 3)
    assert [isinstance(stage[-1], ShuffleAttention) for stage in network.encoder] == [True] * 4
    assert [stage.attention.scale.shape[2] * 16 for stage in network.decoder] == [128, 64, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"spatial_dims": 1}, "spatial_dims"), ({"depths": (1,)}, "two elements"), ({"feature_size": 24}, "multiple of")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MBANet(1, 2, **options)


def test_one_voxel_at_the_coarsest_scale_is_enough_in_evaluation():
    assert MBANet(4, 3, groups=1).eval()(torch.rand(1, 4, 8, 8, 8)).isfinite().all()
