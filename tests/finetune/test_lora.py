"""Adapters start without effect, are all that learns, and leave a plain network behind."""

import copy
import io

import pytest
import torch

from monai_attention.finetune.ends import find_ends
from monai_attention.finetune.lora import add_lora, load_lora, lora_state, merge_lora
from tests.finetune.make_networks import NETWORKS, made
from tests.refusals import refusal


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def loss(network, image):
    network.train()
    out = network(image)
    return sum(y.square().mean() for y in (out if isinstance(out, tuple) else (out,)))


def trained(name, steps=2, **options):
    """A network with adapters after a few steps, and what is trained."""
    network, heads = made(name, **options), find_ends(NETWORKS[name], 1, 3).heads
    matrices = {key for key, tensor in network.state_dict().items() if key.endswith(".weight") and tensor.ndim > 1}
    assert {f"{layer}.weight" for layer in add_lora(network, rank=2, train=heads)} == matrices - set(heads)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, image).backward()
        optimizer.step()
    return network, heads, image


def test_nothing_changes_at_first_and_only_adapters_and_heads_learn(name):
    plain = made(name).eval()
    network, heads, image = trained(name, steps=0)
    assert torch.equal(network.eval()(image), plain(image))
    start, then = network.state_dict(), trained(name)[0].state_dict()
    moved = {key for key in start if not torch.equal(start[key], then[key])}
    assert moved == {key for key in start if key.endswith((".up", ".down")) or key in heads}


def test_every_adapter_gets_a_gradient_with_and_without_recomputing(name):
    gradients = []
    for checkpoint in (False, True, "selective"):
        network, _, image = trained(name)
        for layer in network.modules():
            if hasattr(layer, "use_checkpoint"):
                layer.use_checkpoint = checkpoint
        network.zero_grad()
        loss(network, image).backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    for key, gradient in gradients[0].items():
        assert gradient is not None, key
        assert gradient.isfinite().all(), key
        assert gradient.abs().sum() > 0, key
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-6)


def test_a_merged_network_is_a_plain_one_with_the_same_output(name):
    network, _, image = trained(name)
    with torch.no_grad():
        expected = network.eval()(image)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(image)
        merge_lora(network)
        torch.testing.assert_close(network(image), expected, rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(image), low, rtol=0, atol=0)
        plain = made(name, seed=1).eval()
        assert not torch.allclose(plain(image), expected)
        plain.load_state_dict(network.state_dict(), strict=True)
        torch.testing.assert_close(plain(image), expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in network.parameters())
    program = torch.export.export(network, (image,))
    torch.testing.assert_close(program.module()(image), network(image))


def test_a_copy_is_merged_without_the_original(name):
    network, _, image = trained(name)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        expected = network.eval()(image)
        merge_lora(copied)
        assert torch.equal(network(image), expected)
        merge_lora(network)
        torch.testing.assert_close(copied.eval()(image), network(image), rtol=0, atol=0)


def test_adapters_travel_alone(name):
    network, heads, image = trained(name)
    state, file = lora_state(network), io.BytesIO()
    assert {key.rpartition(".")[2] for key in state if key not in heads} == {"down", "up", "scale"}
    assert {float(tensor) for key, tensor in state.items() if key.endswith("scale")} == {16 / 2}, "alpha / rank"
    torch.save(state, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    expected = network.eval()(image)
    again = made(name).eval()
    load_lora(again, state)
    torch.testing.assert_close(again(image), expected)
    learning = {n: p.requires_grad for n, p in network.named_parameters()}
    assert {n: p.requires_grad for n, p in again.named_parameters()} == learning
    load_lora(again, lora_state(trained(name, steps=1)[0]))  # over adapters that are there
    assert not torch.allclose(again(image), expected)


def test_adapters_of_another_network_are_refused_whole():
    state = lora_state(trained("FlexUNETR")[0])
    other = made("FlexUNETR", out_channels=4)
    before = dict(other.state_dict())
    message = refusal(load_lora, other, state).message
    assert "head.conv.conv.weight (3, 6, 1, 1, 1), expected (4, 6, 1, 1, 1)" in message
    assert other.state_dict().keys() == before.keys()
    assert "unexpected" in refusal(load_lora, made("MBANet"), state).message
    cut = {key: tensor for key, tensor in state.items() if "blocks.1.attn.qkv" not in key or key.endswith("down")}
    assert "2 missing keys" in refusal(load_lora, made("FlexUNETR"), cut).message
    fewer = {key: tensor for key, tensor in state.items() if ".mlp." not in key}
    assert "18 missing keys" in refusal(load_lora, trained("FlexUNETR")[0], fewer).message


def test_what_cannot_be_adapted_is_told():
    with pytest.raises(ValueError, match="MBANet has a name like 'nothing'"):
        add_lora(made("MBANet"), targets="nothing")
    with pytest.raises(ValueError, match=r"no parameters \['heads'\]"):
        add_lora(made("FlexUNETR"), train=["heads"])
    network = made("FlexUNETR")
    add_lora(network)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(network)


def test_an_average_of_the_weights_goes_along():
    network, _, image = trained("FlexUNETR", steps=0)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(trained("FlexUNETR", steps=0)[0])
    average.update_parameters(trained("FlexUNETR", steps=2)[0])
    up = "encoder.blocks.0.attn.qkv.parametrizations.weight.0.up"
    torch.testing.assert_close(lora_state(average.module)[up], lora_state(trained("FlexUNETR")[0])[up] / 2)
    assert torch.isfinite(average(image)).all()
