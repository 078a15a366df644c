"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from monai_attention.finetune.optimizers import MuonAdamW, _all_orthogonal, orthogonal


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 3), Places(), nn.GELU(), nn.Flatten(), nn.Linear(54, 3))


class Places(nn.Module):
    """Adds a table, which is no layer's weight."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3, 3))

    def forward(self, x):
        return x + self.table


def train(net, optimizers, steps, schedule=None):
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step)
        (net(torch.randn(8, 1, 5, 5)) - 1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        if schedule:
            schedule.step()


class Matrix(nn.Conv2d):
    """A convolution whose weights are kept as a matrix."""

    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size)
        self.shape = conv.weight.shape
        self.weight, self.bias = nn.Parameter(conv.weight.detach().flatten(1)), conv.bias

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight.view(self.shape), self.bias)


def test_inner_layers_take_muon_s_steps_and_the_rest_adamw_s():
    net, peer = network(), network()
    train(net, [MuonAdamW(net.named_parameters(), outer=["0."], lr=0.01, weight_decay=0.1)], 3)
    peer[1] = Matrix(peer[1])
    both = (
        torch.optim.Muon([peer[1].weight, peer[5].weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [*peer[0].parameters(), peer[1].bias, peer[2].table, peer[5].bias], lr=0.01, weight_decay=0.1
        ),
    )
    train(peer, both, 3)
    for (name, ours), theirs in zip(net.named_parameters(), peer.parameters(), strict=True):
        muon = name in ("1.weight", "5.weight")  # torch orthogonalises in bfloat16
        torch.testing.assert_close(ours.flatten(), theirs.flatten(), rtol=0, atol=2e-3 if muon else 1e-4)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16)])
def test_orthogonal_matrices_have_the_iteration_applied_to_each_singular_value(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    others = torch.randn(2, *shape)
    found = orthogonal(torch.stack([others[0], matrix, 100 * others[1]]))
    torch.testing.assert_close(found[1], (u @ s.diag() @ v).float(), rtol=0, atol=5e-4)
    torch.testing.assert_close(found[2:], orthogonal(others[1:]), rtol=0, atol=5e-4)
    assert torch.equal(orthogonal(torch.zeros(1, *shape)), torch.zeros(1, *shape))


def test_matrices_of_one_shape_are_worked_on_together_and_keep_their_places():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((4, 6), (3, 3), (4, 6), (6, 4))]
    together = _all_orthogonal(*matrices)
    for one, matrix in zip(together, matrices, strict=True):
        torch.testing.assert_close(one, orthogonal(matrix[None])[0], rtol=0, atol=1e-5)


def test_a_copy_of_the_optimizer_and_layers_that_are_frozen_for_a_while_are_no_obstacle():
    net = network()
    optimizer = MuonAdamW(net.named_parameters(), outer=["0."])
    for frozen in (False, True, False):
        net[1].requires_grad_(not frozen)
        before = copy.deepcopy(net)
        train(net, [optimizer], 1)
        assert torch.equal(net[1].weight, before[1].weight) is frozen
        assert not torch.equal(net[5].weight, before[5].weight)
    both = copy.deepcopy((net, optimizer))
    for one in ((net, optimizer), both):
        train(one[0], [one[1]], 1)
    torch.testing.assert_close(list(net.parameters()), list(both[0].parameters()), rtol=0, atol=0)


def test_training_goes_on_from_a_saved_state_as_if_it_had_never_stopped():
    def begun():
        net = network()
        optimizer = MuonAdamW(net.named_parameters(), lr=0.01)
        return net, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    net, optimizer, schedule = begun()
    train(net, [optimizer], 2, schedule)
    saved = copy.deepcopy([x.state_dict() for x in (net, optimizer, schedule)])
    train(net, [optimizer], 2, schedule)
    again = begun()
    for x, state in zip(again, saved, strict=True):
        x.load_state_dict(state)
    train(again[0], [again[1]], 2, again[2])
    torch.testing.assert_close(list(net.parameters()), list(again[0].parameters()), rtol=0, atol=0)
    assert {group["lr"] for group in again[1].param_groups} == {0.01 * 0.5**4}


def test_gradients_of_one_step_are_gone_before_the_next():
    net = network()
    optimizer = MuonAdamW(net.named_parameters())
    train(net, [optimizer], 1)
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    before = copy.deepcopy(net)
    optimizer.step()
    torch.testing.assert_close(list(net.parameters()), list(before.parameters()), rtol=0, atol=0)


def test_names_that_fit_nothing_and_networks_of_one_kind_of_layer_are_refused():
    net = network()
    with pytest.raises(ValueError, match="no parameter's name begins with heads"):
        MuonAdamW(net.named_parameters(), outer=["0.", "heads"])
    with pytest.raises(ValueError, match="expected layers for Muon and for AdamW; got 0 and 7"):
        MuonAdamW(net.named_parameters(), outer=["0", "1", "5"])
