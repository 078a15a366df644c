"""Dice and cross-entropy of what was annotated."""

import pytest
import torch
from monai.losses import DiceCELoss

from monai_attention.finetune import loss as module
from monai_attention.finetune.loss import PartialDiceCE, thinned


def case(batch=2, classes=3, size=(6, 5, 4)):
    torch.manual_seed(0)
    logits = torch.randn(batch, classes, *size, requires_grad=True)
    return logits, torch.randint(classes, (batch, 1, *size))


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
def test_it_is_monai_s_where_everything_is_annotated_and_present(size, monkeypatch):
    monkeypatch.setitem(module._CHUNK_NUMBERS, "cpu", 100)  # several pieces, the last one smaller
    logits, labels = case(size=size)
    ours, theirs = PartialDiceCE()(logits, labels), DiceCELoss(softmax=True, to_onehot_y=True)(logits, labels)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits), rtol=1e-4, atol=1e-7)


def test_the_logarithm_of_dice_pulls_at_a_class_of_which_nothing_is_found():
    logits, labels = case(batch=1, classes=2)
    labels = (labels > 0) & (torch.rand(labels.shape) < 0.1)
    hopeless = torch.stack([torch.full_like(logits[:, 0], 9.0), torch.zeros_like(logits[:, 0])], dim=1)
    hopeless.requires_grad_()
    dice = []
    for value in (0, 1):
        predicted, there = hopeless.softmax(1)[:, value], labels[:, 0] == value
        dice.append(2 * (predicted * there).sum() / (predicted.sum() + there.sum()))
    entropy = torch.nn.functional.cross_entropy(hopeless, labels[:, 0].long())
    loss = PartialDiceCE(log_dice=True)(hopeless, labels)
    torch.testing.assert_close(loss, -torch.stack(dice).log().mean() + entropy)
    there = labels[:, 0].expand_as(hopeless[:, 1])
    pulled, linear = gradient(loss, hopeless), gradient(PartialDiceCE()(hopeless, labels), hopeless)
    assert (pulled[:, 1][there] < 5 * linear[:, 1][there]).all()
    assert (linear[:, 1][there] < 0).all()
    logits = torch.full_like(hopeless, 500.0)
    logits[:, 1] = -500
    assert PartialDiceCE(log_dice=True)(logits, labels).isfinite()


def test_ignored_voxels_take_no_part_in_either_term():
    logits, labels = case(batch=1)
    labels[:, :, 4:] = 255
    whole = PartialDiceCE()(logits, labels)
    kept = PartialDiceCE()(logits[:, :, :4], labels[:, :, :4])
    torch.testing.assert_close(whole, kept)
    grad = gradient(whole, logits)
    assert (grad[:, :, 4:] == 0).all()
    assert (grad[:, :, :4] != 0).all()


def test_absent_classes_and_unannotated_cases_give_finite_numbers():
    logits, labels = case(classes=4)
    labels[0], labels[1] = labels[0].clamp(max=1), 255
    loss = PartialDiceCE()(logits, labels)
    grad = gradient(loss, logits)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert (grad[1] == 0).all()
    both = DiceCELoss(softmax=True, to_onehot_y=True, reduction="mean")
    two = torch.log_softmax(logits[:1], 1)  # background and class 1 alone are in the Dice
    dice = [
        1 - 2 * (two.exp()[0, c] * (labels[0, 0] == c)).sum() / (two.exp()[0, c].sum() + (labels[0] == c).sum())
        for c in (0, 1)
    ]
    torch.testing.assert_close(loss, sum(dice) / 2 + both.ce(logits[:1], labels[:1]))
    nothing = PartialDiceCE()(logits, torch.full_like(labels, 255))
    assert nothing == 0
    assert (gradient(nothing, logits) == 0).all()


def plainly(logits, labels, ignored=255):
    """The same in float64, all at once, differentiated by torch."""
    exact, known = logits.double().log_softmax(1), labels != ignored
    true = (labels == torch.arange(logits.shape[1]).view(1, -1, *[1] * (labels.ndim - 2))) & known
    axes = tuple(range(2, logits.ndim))
    volume = true.sum(axes)
    dice = 2 * (exact.exp() * true).sum(axes) / ((exact.exp() * known).sum(axes) + volume).clamp(min=1)
    return (1 - dice)[volume > 0].mean() - (exact * true).sum() / known.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_gradient_is_that_of_a_plain_float64_loss(dtype, layout, monkeypatch):
    monkeypatch.setitem(module._CHUNK_NUMBERS, "cpu", 150)
    logits, labels = case(classes=4, size=(7, 5, 4))
    logits = (3 * logits.detach()).to(dtype).contiguous(memory_format=layout).requires_grad_()
    labels[0][labels[0] == 3] = 255
    labels[1][labels[1] == 1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        ours = 2.5 * PartialDiceCE()(logits, labels)
        found = gradient(ours, logits)
    plain = 2.5 * plainly(logits, labels)
    assert found.dtype == dtype
    tolerance = {} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-7}
    torch.testing.assert_close(ours.double(), plain)
    torch.testing.assert_close(found, gradient(plain, logits), **tolerance)


def test_a_perfect_answer_costs_nothing():
    _, labels = case()
    logits = 100.0 * torch.nn.functional.one_hot(labels[:, 0]).movedim(-1, 1)
    assert PartialDiceCE()(logits, labels) < 1e-6


def test_scales_weigh_half_as_much_each():
    logits, labels = case(size=(9, 5, 4))
    coarse = torch.randn(2, 3, 5, 3, 4)
    one = PartialDiceCE()
    expected = (one(logits, labels) + 0.5 * one(coarse, thinned(labels, (5, 3, 4)))) / 1.5
    torch.testing.assert_close(one((logits, coarse), labels), expected)


def test_coarse_labels_lie_where_coarse_voxels_do():
    ramp = torch.arange(9).view(1, 1, 9, 1).expand(1, 1, 9, 3)
    assert thinned(ramp, (5, 3))[0, 0, :, 0].tolist() == [1, 3, 5, 7, 8]
    assert thinned(ramp, (3, 3))[0, 0, :, 0].tolist() == [2, 6, 8]  # 9 -> 5 -> 3
    assert thinned(ramp[:, :, :5], (2, 3))[0, 0, :, 0].tolist() == [2, 4]  # 5 -> 3 -> 2
    assert thinned(ramp, (9, 2)).shape == (1, 1, 9, 2)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = case(batch=1, classes=2, size=(40, 40, 40))
    with torch.autocast("cpu", torch.bfloat16):
        low = PartialDiceCE()(logits.bfloat16(), labels)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, PartialDiceCE()(logits.bfloat16().float(), labels))


def test_many_voxels_of_a_class_are_summed_exactly(monkeypatch):
    """Two millions: added to a float32 of that size, one after the other, all between 0.9 and 1 would count as 1."""
    monkeypatch.setitem(module._CHUNK_NUMBERS, "cpu", 1 << 24)
    torch.manual_seed(0)
    probability = 0.9 + 0.1 * torch.rand(1, 128, 128, 128)
    logits = torch.stack([probability.logit(), torch.zeros_like(probability)], dim=1)
    labels = torch.zeros(1, 1, 128, 128, 128, dtype=torch.uint8)
    mean = probability.double().mean()
    expected = 1 - 2 * mean / (1 + mean) - probability.double().log().mean()
    assert float(PartialDiceCE()(logits, labels)) == pytest.approx(float(expected), rel=1e-3)


def test_nothing_as_large_as_the_logits_is_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setitem(module._CHUNK_NUMBERS, "cpu", 1000)
    logits, labels = case(batch=1, classes=4, size=(20, 10, 10))
    labels = labels.to(torch.uint8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        PartialDiceCE()(logits, labels)
    own = {logits.untyped_storage().data_ptr(), labels.untyped_storage().data_ptr()}
    assert sum(x.numel() for x in kept if x.untyped_storage().data_ptr() not in own) < 1000


def test_labels_that_are_no_class_are_refused():
    logits, labels = case()
    for wrong in (labels + 1, labels - 1, labels + 0.5):
        with pytest.raises(ValueError, match="labels must be whole, 0 to 2, or 255"):
            PartialDiceCE()(logits, wrong)
    with pytest.raises(ValueError, match=r"shape \(2, 1, 6, 5, 4\)"):
        PartialDiceCE()(logits, labels[:, :, 1:])
