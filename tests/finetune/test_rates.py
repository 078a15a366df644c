"""Which parameters learn, how fast, and which decay."""

import pytest
import torch

from monai_attention.finetune.ends import find_ends
from monai_attention.finetune.lora import add_lora
from monai_attention.finetune.rates import layers, parameter_groups, train_only
from tests.finetune.make_networks import NETWORKS, made

LAYERS = {
    "FlexUNETR": "encoder encoder.blocks.0 encoder.blocks.1 encoder.blocks.2 input_skip skips decoder.0 decoder.1 head",
    "FlexSwinUNETR": "embedding encoder.0 encoder.1 skips bottom decoder.0 decoder.1 last",
    "NNFormer": "embedding encoder.0 encoder.1 encoder.2 decoder.0 decoder.1 heads",
    "MBANet": "stem encoder.0 encoder.1 encoder.2 decoder.0 decoder.1 head",
}
NO_DECAY = (".bias", "norm.weight", "norm1.weight", "norm2.weight", ".table", "position_embedding", "scale", "offset")


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def test_rates_fall_from_the_output_to_the_input(name):
    network = made(name)
    assert list(layers(network)) == LAYERS[name].split()
    groups = parameter_groups(network, 0.1, decay=0.5)
    rate = {group["layer"]: group["lr"] for group in groups}
    for above, layer in enumerate(reversed(LAYERS[name].split())):
        assert rate[layer] == pytest.approx(0.1 * 0.5**above)
    by_id = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in groups), "each parameter once"
    ends = find_ends(NETWORKS[name], 1, 3)
    rates = {key: by_id[id(parameter)] for key, parameter in network.named_parameters()}
    assert {rates[key] for key in ends.heads} == {max(rates.values())}
    assert min(rates, key=rates.get).startswith(("encoder", "embedding", "stem"))
    torch.optim.AdamW(groups)


def test_norms_biases_gates_and_tables_do_not_decay(name):
    network = made(name)
    decays = {id(p) for g in parameter_groups(network, 0.1, weight_decay=0.3) if g["weight_decay"] for p in g["params"]}
    for key, parameter in network.named_parameters():
        a_norm_s = parameter.ndim == 1 or key.endswith(NO_DECAY)
        assert (id(parameter) in decays) != a_norm_s, key


def test_the_head_alone_or_adapters_and_the_head(name):
    network, heads = made(name), find_ends(NETWORKS[name], 1, 3).heads
    train_only(network, heads)
    (layer,) = {group["layer"] for group in parameter_groups(network, 0.1)}
    assert layer == LAYERS[name].split()[-1]
    assert sum(len(group["params"]) for group in parameter_groups(network, 0.1)) == len(heads)
    if name != "MBANet":
        network = made(name)
        add_lora(network, train=heads)
        assert list(layers(network)) == LAYERS[name].split()
        assert all(g["weight_decay"] for g in parameter_groups(network, 0.1) if g["layer"] != layer)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
        parameter_groups(made("MBANet"), 0.1, decay=0.0)
    with pytest.raises(ValueError, match="nothing is left to learn"):
        parameter_groups(made("MBANet").requires_grad_(False), 0.1)


def test_some_learn_at_rates_of_their_own(name):
    network = made(name)
    ends = find_ends(NETWORKS[name], 1, 3)
    own = dict.fromkeys(ends.heads, 10.0) | dict.fromkeys(ends.inputs, 1.0)
    by_id = {id(p): g["lr"] for g in parameter_groups(network, 0.1, decay=0.5, own=own) for p in g["params"]}
    assert len(by_id) == sum(1 for _ in network.parameters())
    assert {by_id[id(network.get_parameter(key))] for key in ends.heads} == {1.0}
    assert {by_id[id(network.get_parameter(key))] for key in ends.inputs} == {0.1}
