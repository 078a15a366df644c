"""Weights made for some classes and channels do the same work in a network for others."""

import pytest
import torch
from torch import nn

from monai_attention.bundles import configurations, find
from monai_attention.finetune.adapt import Named, adapt
from monai_attention.finetune.ends import Ends, find_ends, make_from
from tests.finetune.make_networks import NETWORKS, logits, made
from tests.refusals import refusal

OLD = ("background", "liver", "left kidney")


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


def adapted(name, classes, channels=("",), of=("",)):
    """A source, and a network for other classes and channels with its weights."""
    source, target = made(name, len(of), len(OLD)), made(name, len(channels), len(classes), seed=1)
    ends = find_ends(NETWORKS[name], len(channels), len(classes))
    done = adapt(target, source.state_dict(), ends, source=Named(OLD, of), target=Named(classes, channels))
    return source, target, done


def same(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_the_ends_are_found_wherever_they_are(name):
    found = find_ends(NETWORKS[name], 1, 6)  # as many classes as some layers have channels
    heads = {
        "FlexUNETR": {"head.conv.conv.weight": 0, "head.conv.conv.bias": 0},
        "FlexSwinUNETR": {"last.head.conv.conv.weight": 0, "last.head.conv.conv.bias": 0},
        "NNFormer": {"heads.0.weight": 1, "heads.0.bias": 0, "heads.1.weight": 1, "heads.1.bias": 0},
        "MBANet": {"head.weight": 0, "head.bias": 0},
    }
    stem, skip = "encoder.patch_embedding.stem.0", "input_skip"
    inputs = {
        "FlexUNETR": [f"{part}.conv{i}.conv.weight" for part in (stem, skip) for i in (1, 3)],
        "FlexSwinUNETR": ["embedding.weight", "last.skip.conv1.conv.weight", "last.skip.conv3.conv.weight"],
        "NNFormer": ["embedding.convs.0.weight"],
        "MBANet": ["stem.0.weight"],
    }
    assert found == Ends(inputs=dict.fromkeys(inputs[name], 1), heads=heads[name])
    assert find_ends(NETWORKS[name], 5, 3).inputs == found.inputs  # 6 leave the layer of a shortcut out


def test_classes_in_another_order_give_the_same_logits_in_that_order(name):
    source, target, done = adapted(name, ("Left_Kidney", "background", "liver"))
    image = torch.randn(1, 1, 16, 16, 16)
    same(logits(target, image), [y[:, [2, 0, 1]] for y in logits(source, image)], rtol=0, atol=0)
    assert {one.name for one in done.changed} == find_ends(NETWORKS[name], 1, 3).heads.keys()
    assert done.left_out == ()


def test_row_42_a_class_may_go_another_may_come_and_every_tensor_concerned_is_named(name):
    fresh = made(name, 1, 3, seed=1)
    source, target, done = adapted(name, ("background", "spleen", "liver"))
    image = torch.randn(1, 1, 16, 16, 16)
    same([y[:, [0, 2]] for y in logits(target, image)], [y[:, [0, 1]] for y in logits(source, image)])
    own, theirs, new = (dict(n.state_dict()) for n in (target, source, fresh))
    for key, axis in find_ends(NETWORKS[name], 1, 3).heads.items():
        assert torch.equal(own[key].select(axis, 1), new[key].select(axis, 1)), "rows of a new class are the network's"
    changed = {one.name for one in done.changed}
    assert changed == {key for key in own if not torch.equal(own[key], theirs[key])}
    assert done.carried == len(own) - len(changed)
    assert done.left_out == ("left kidney",)
    told = done.lines()
    for key in changed:
        shape = tuple(own[key].shape)
        assert f"{key} {shape}: carried over: background, liver; initialised afresh: spleen" in told
    assert told[-1] == "left out: left kidney"


def test_fewer_classes_keep_their_logits(name):
    source, target, done = adapted(name, ("background", "left kidney"))
    image = torch.randn(1, 1, 16, 16, 16)
    same(logits(target, image), [y[:, [0, 2]] for y in logits(source, image)])
    assert done.left_out == ("liver",)


def test_an_image_repeated_over_new_channels_gives_the_same_logits(name):
    source, target, done = adapted(name, OLD, channels=("", "", ""))
    image = torch.randn(1, 1, 16, 16, 16)
    same(logits(target, image.expand(-1, 3, -1, -1, -1)), logits(source, image), rtol=1e-5, atol=1e-5)
    assert {one.name for one in done.changed} == find_ends(NETWORKS[name], 3, 3).inputs.keys()
    assert all("0.333 of channel 0: channel 0, channel 1, channel 2" in line for line in done.lines()[1:])


def test_channels_go_by_their_names(name):
    source, target, done = adapted(name, OLD, channels=("FLAIR", "T2", "T1"), of=("t1", "t2"))
    image = torch.randn(1, 3, 16, 16, 16)
    same(logits(target, image), logits(source, image[:, [2, 1]]), rtol=1e-4, atol=1e-5)
    assert done.changed[0].origins == (("FLAIR", "zero"), ("T2", "carried over"), ("T1", "carried over"))
    source, target, done = adapted(name, OLD, channels=("T1", "CT"), of=("T1", "T2", "FLAIR"))
    image = torch.randn(1, 2, 16, 16, 16)
    same(logits(target, image), logits(source, image[:, [0, 1, 1]]), rtol=1e-4, atol=1e-5)
    assert done.changed[0].origins[1] == ("CT", "1 of T2 + FLAIR")


def test_nothing_changes_where_nothing_differs(name):
    source, target, done = adapted(name, OLD, channels=("", ""), of=("", ""))
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    assert done.changed == ()
    assert len(done.lines()) == 1


def test_row_42_any_other_difference_is_refused_and_nothing_is_loaded():
    make, named = NETWORKS["MBANet"], Named(("a", "b"), ("",))
    network, ends = make(1, 2), find_ends(make, 1, 2)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = dict(make(1, 2, feature_size=16).state_dict())
    wide = refusal(adapt, network, state, ends, source=named, target=Named(("b", "a"), ("",)))
    assert wide.code == "E-WEIGHTS-MISMATCH"
    assert "stem.0.weight (16, 1, 3, 3, 3), expected (8, 1, 3, 3, 3)" in wide.message
    assert "in_channels and out_channels" in wide.remedy
    missing = {key: tensor for key, tensor in make(1, 2).state_dict().items() if key != "head.bias"}
    assert "1 missing keys: head.bias" in refusal(adapt, network, missing, ends, source=named, target=named).message
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_names_that_do_not_count_are_refused():
    make, two = NETWORKS["MBANet"], Named(("a", "b"), ("",))
    network, ends, state = make(1, 2), find_ends(make, 1, 2), make(1, 2).state_dict()
    for wrong in (Named(("a", "b", "c"), ("",)), Named(("a", "A"), ("",)), Named(("a", "b"), ("", ""))):
        assert refusal(adapt, network, state, ends, source=wrong, target=two).code == "E-BUNDLE-METADATA"
        with pytest.raises(ValueError, match="of the new network"):
            adapt(network, state, ends, source=two, target=wrong)


def test_a_single_layer_is_both_ends():
    def make(m, n):
        return nn.Conv3d(m, n, 1)

    source, target = make(1, 2), make(2, 2)
    ends = find_ends(make, 2, 2)
    adapt(target, source.state_dict(), ends, source=Named(("a", "b"), ("",)), target=Named(("b", "a"), ("", "")))
    image = torch.randn(1, 1, 3, 3, 3)
    torch.testing.assert_close(target(image.expand(-1, 2, -1, -1, -1)), source(image).flip(1))


def test_a_network_whose_ends_are_no_rows_is_refused():
    for make in (lambda m, n: nn.Conv3d(m, 2 * n, 1), lambda m, n: nn.Linear(n, n)):
        assert refusal(find_ends, make, 1, 2).code == "E-WEIGHTS-MISMATCH"


def test_finding_the_ends_leaves_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    find_ends(NETWORKS["MBANet"], 1, 2)
    assert torch.equal(torch.rand(1), expected)


def test_a_bundle_s_network_can_be_made_for_others():
    _, config = configurations(find("brain_mri_tissue_flexunetr"), {})
    network = make_from(config)(2, 5)
    with torch.no_grad():
        assert network(torch.zeros(1, 2, 8, 8, 8)).shape == (1, 5, 8, 8, 8)
