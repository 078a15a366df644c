"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from monai_attention.finetune.optimizers import MuonAdamW


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))


def train(net, optimizer, steps, schedule=None):
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        (net(torch.randn(8, 4)) - 1).square().mean().backward()
        optimizer.step()
        if schedule:
            schedule.step()


def test_matrices_take_muon_s_steps_and_the_rest_adamw_s():
    net, peer = network(), network()
    train(net, MuonAdamW(net.parameters(), lr=0.01, weight_decay=0.1), 3)
    weights, biases = [peer[0].weight, peer[2].weight], [peer[0].bias, peer[2].bias]
    both = (
        torch.optim.Muon(weights, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(biases, lr=0.01, weight_decay=0.1),
    )
    for step in range(3):
        peer.zero_grad()
        torch.manual_seed(step)
        (peer(torch.randn(8, 4)) - 1).square().mean().backward()
        for optimizer in both:
            optimizer.step()
    torch.testing.assert_close(list(net.parameters()), list(peer.parameters()), rtol=0, atol=0)


def test_training_goes_on_from_a_saved_state_as_if_it_had_never_stopped():
    def begun():
        net = network()
        optimizer = MuonAdamW(net.parameters(), lr=0.01)
        return net, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    net, optimizer, schedule = begun()
    train(net, optimizer, 2, schedule)
    saved = copy.deepcopy([x.state_dict() for x in (net, optimizer, schedule)])
    train(net, optimizer, 2, schedule)
    again = begun()
    for x, state in zip(again, saved, strict=True):
        x.load_state_dict(state)
    train(again[0], again[1], 2, again[2])
    torch.testing.assert_close(list(net.parameters()), list(again[0].parameters()), rtol=0, atol=0)
    assert {group["lr"] for group in again[1].param_groups} == {0.01 * 0.5**4}


def test_a_network_without_matrices_is_refused():
    with pytest.raises(ValueError, match="empty parameter list"):
        MuonAdamW(nn.Conv3d(1, 2, 3).parameters())
