import math

import pytest
import torch
import torch.nn.functional as F

from monai_attention.cohort.phases import Phases
from monai_attention.registration import SIMILARITIES as NAMES
from monai_attention.registration import pair
from monai_attention.registration.affine import Affine
from monai_attention.registration.optimise import Optimised
from monai_attention.registration.pair import Plan, cropped, evenly_spaced, register_pair
from monai_attention.registration.scan import Scan, normalised, transform
from monai_attention.registration.similarities import SIMILARITIES, otsu, similarity, suited
from tests.registration.make_scans import T2, head, moved, rigid

CPU = torch.device("cpu")


def far_away(moving, fixed):
    """What a network gives that has learned nothing good."""
    return 6 * torch.randn(1, 3, *fixed.shape, generator=torch.Generator().manual_seed(0))


def test_row_57_a_deformation_that_makes_it_worse_is_dropped():
    scan = head(6.0)
    plan = Plan(similarity="lncc", spacing=6.0, steps=0, network=far_away)
    found = register_pair(scan, scan, plan, Phases(CPU))
    assert found.kept == "affine"
    assert found.transformation.ddf is None
    assert found.figures["network"] > found.figures["affine"]


def test_a_network_helps_where_it_knows_better():
    scan = head(6.0)
    plan = Plan(similarity="lncc", spacing=6.0, steps=0, network=lambda moving, fixed: far_away(moving, fixed) * 0)
    found = register_pair(scan, scan, plan, Phases(CPU))
    assert found.kept == "network"
    assert found.transformation.ddf is not None


@pytest.mark.parametrize(("network", "levels"), [(None, 2), (lambda moving, fixed: far_away(moving, fixed) * 0, 1)])
def test_after_a_network_optimisation_begins_on_a_finer_level(network, levels):
    scan = head(6.0)
    plan = Plan(similarity="lncc", spacing=4.0, steps=1, network=network)
    assert len(register_pair(scan, scan, plan, Phases(CPU)).losses) == levels


PLACES = 35.0 * torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
ASTRAY = F.pad(torch.tensor([[20.0, 0, 0], [0, -20, 0], [0, 0, 20]]), (0, 0, 0, 9))
"""Where structures of a head lie, and how far three of them are from there in another head, mm."""


def near(points, place):
    return (-((points - place.view(1, 3, 1, 1, 1)) / 15).square().sum(dim=1)).exp()


def blobs(places):
    """Structures at places (n, 3)."""
    grid = Scan(torch.zeros(1, 1, 50, 50, 50), torch.diag(torch.tensor([5.0, 5, 5, 1], dtype=torch.float64)))
    grid.affine[:3, 3] = -125
    return Scan(torch.stack([near(grid.points(), place) for place in places], dim=1), grid.affine)


def pulling(fixed, part=1.0):
    """A part of the ddf that three structures ask for, on a grid of 6 mm."""
    steps = zip(PLACES, ASTRAY / 6.0, strict=True)
    return part * sum(step.view(1, 3, 1, 1, 1) * near(fixed.points(), place) for place, step in steps)


def answering(answer):
    """An optimisation that ends with what `answer` makes of the field it began from."""

    def optimise(moving, fixed, *_, initial, **__):
        return Optimised(answer(initial), torch.zeros(1, 3, 4, 4, 4), [[0.0]])

    return optimise


def test_a_pose_stands_in_for_the_affine_registration_where_it_is_found():
    scan = head(6.0)
    turned = rigid((0, 150, 0), (0, 0, 0))
    other = moved(scan, turned)
    there = transform(PLACES.T[None], turned)[0].T
    found, lost = (
        register_pair(scan, other, Plan("lncc", 6.0, 0, recognise=recognise), Phases(CPU))
        for recognise in (
            lambda one: blobs(PLACES if one is scan else there),
            lambda one: blobs(PLACES[:11] if one is scan else there[:11]),
        )
    )
    assert (found.transformation.matrix - turned).abs().max() < 1
    assert (lost.transformation.matrix - turned).abs().max() > 10
    assert found.overlaps["affine"] > 0.95
    assert list(found.overlaps) == list(found.figures)
    assert math.isnan(lost.overlaps["affine"])


@pytest.mark.parametrize(
    ("number", "part", "kept"),
    [(12, 1, "network"), (12, 0.01, "affine"), (12, -1, "affine"), (11, 1, "affine")],
    ids=["brings together", "hardly", "drives apart", "too few to tell"],
)
def test_row_57_recognised_structures_have_a_say_in_what_is_dropped(number, part, kept):
    """The images are the same, so any field makes them less alike; three structures ask for one."""
    scan = head(6.0)
    once = iter((PLACES, PLACES + ASTRAY))
    network = lambda moving, fixed: pulling(fixed, part)  # noqa: E731
    plan = Plan("lncc", 6.0, 0, network=network, recognise=lambda _: blobs(next(once)[:number]))
    found = register_pair(scan, scan, plan, Phases(CPU))
    assert found.figures["network"] > found.figures["affine"]
    assert found.kept == kept
    assert (found.transformation.ddf is None) is (kept == "affine")


def test_row_57_a_field_that_is_no_number_somewhere_is_dropped_and_not_begun_from():
    scan = head(6.0)

    def network(moving, fixed):
        ddf = far_away(moving, fixed) * 0
        ddf[..., :2, :2, :2] = math.nan  # in the corner, where there is nothing to see
        return ddf

    recognise = lambda _: blobs(PLACES)  # noqa: E731
    found = register_pair(scan, scan, Plan("lncc", 6.0, 0, network=network, recognise=recognise), Phases(CPU))
    assert (found.kept, found.dropped) == ("affine", ["network"])
    assert math.isnan(found.figures["network"])
    found = register_pair(scan, scan, Plan("lncc", 4.0, 1, network=network), Phases(CPU))
    assert len(found.losses) == 2  # the levels of an optimisation without a network
    assert all(math.isfinite(loss) for level in found.losses for loss in level)


def test_row_57_an_optimisation_that_makes_it_worse_leaves_the_field_of_the_network(monkeypatch):
    scan = head(6.0)
    monkeypatch.setattr(pair, "optimise", answering(lambda initial: 10 * torch.randn(initial.shape)))
    plan = Plan("lncc", 6.0, 1, network=lambda moving, fixed: far_away(moving, fixed) * 0)
    found = register_pair(scan, scan, plan, Phases(CPU))
    assert (found.kept, found.dropped) == ("network", ["optimised"])
    assert not found.transformation.ddf.any()


def test_row_57_an_optimisation_that_undoes_half_of_it_leaves_the_field_of_the_network(monkeypatch):
    """What it ends with is still better than the affine registration."""
    scan = head(6.0)
    unmoved = Affine(torch.eye(4, dtype=torch.float64), 1.0, 1.0, False)
    monkeypatch.setattr(pair, "register_affine", lambda *_, **__: unmoved)
    monkeypatch.setattr(pair, "optimise", answering(lambda initial: initial / 2))
    two_voxels = torch.tensor([2.0, 0, 0]).view(1, 3, 1, 1, 1)
    plan = Plan("lncc", 6.0, 1, network=lambda moving, fixed: two_voxels.expand(1, 3, *fixed.shape))
    found = register_pair(scan, Scan(scan.values.roll(2, dims=2), scan.affine), plan, Phases(CPU))
    assert found.figures["network"] < found.figures["optimised"] < found.figures["affine"]
    assert (found.kept, found.dropped) == ("network", ["optimised"])


@pytest.mark.parametrize(("part", "kept"), [(0.0, "network"), (0.9, "optimised")])
def test_row_57_an_optimisation_that_parts_structures_again_leaves_the_field_of_the_network(monkeypatch, part, kept):
    """The less is left of the field, the more alike are the images, which are the same."""
    scan = head(6.0)
    monkeypatch.setattr(pair, "optimise", answering(lambda initial: initial * part))
    once = iter((PLACES, PLACES + ASTRAY))
    network = lambda moving, fixed: pulling(fixed)  # noqa: E731
    found = register_pair(
        scan, scan, Plan("lncc", 6.0, 1, network=network, recognise=lambda _: blobs(next(once))), Phases(CPU)
    )
    assert found.figures["optimised"] < found.figures["network"]
    assert found.kept == kept


def test_row_57_a_field_that_was_dropped_is_told_though_optimisation_succeeded(monkeypatch):
    scan = head(6.0)

    def stays(moving, fixed, *_, initial, **__):
        assert initial is None
        return Optimised(torch.zeros(1, 3, *fixed.shape[2:]), torch.zeros(1, 3, 4, 4, 4), [[0.0]])

    monkeypatch.setattr(pair, "optimise", stays)
    found = register_pair(scan, scan, Plan("lncc", 6.0, 1, network=far_away), Phases(CPU))
    assert (found.kept, found.dropped) == ("optimised", ["network"])


def test_what_may_be_typed_is_what_there_is():
    assert set(NAMES) == {"auto", *SIMILARITIES}


def test_contrasts_that_differ_are_seen():
    scan, other = head(6.0), head(6.0, brightness=T2)
    one, two = (x.values / x.values.max() for x in (scan, other))
    mask = torch.ones_like(one)
    assert suited(one, one + 0.02, mask) == "lncc"
    assert suited(two, one, mask) == "mind"
    assert suited(two, one, torch.zeros_like(one)) == "mind"


def test_noise_around_a_head_is_not_taken_for_likeness():
    """Noise below 0 lifts the background of what is scaled to [0, 1]; it is most of an image."""
    generator = torch.Generator().manual_seed(0)

    def noisy(scan):
        values = scan.values / scan.values.max() + 0.04 * torch.randn(scan.values.shape, generator=generator)
        return normalised(Scan(values, scan.affine)).values

    one, same, other = noisy(head(4.0)), noisy(head(4.0)), noisy(head(4.0, brightness=T2))
    mask = torch.ones_like(one)
    assert float(one.median()) > 0.05
    assert suited(same, one, mask) == "lncc"
    assert suited(other, one, mask) == "mind"


def test_otsu_parts_two_groups():
    values = torch.cat([torch.linspace(0, 0.2, 500), torch.linspace(0.7, 1.0, 100)])
    assert 0.2 <= float(otsu(values)) <= 0.7


@pytest.mark.parametrize("name", SIMILARITIES)
def test_an_image_is_most_like_itself(name):
    image = head(6.0).values / 1100
    unlike = similarity(name)
    moved = image.roll(1, dims=2)
    assert unlike(image, image, None) < unlike(moved, image, None)
    with pytest.raises(ValueError, match="similarity must be auto or one of lncc, mi, mind"):
        similarity("ssd")


def test_the_grid_of_the_search_is_even_and_holds_what_is_seen():
    values = torch.zeros(1, 1, 40, 40, 20)
    values[:, :, 10:20, 15:25, 5:15] = 1
    scan = Scan(values, torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64)))
    part = cropped(scan, 6.0)
    assert part.shape == (22, 16, 14)
    assert float(part.values.sum()) == 1000
    assert part.affine[:3, 3].tolist() == [4, 24, 9]
    even = evenly_spaced(part, 2.0)
    assert even.shape == (11, 16, 21)
    torch.testing.assert_close(even.points().mean(dim=(2, 3, 4)), part.points().mean(dim=(2, 3, 4)))


def test_percentiles_are_of_voxels_everywhere(monkeypatch):
    """Twenty planes, the first one bright: of every so many-th voxel all could be of that plane."""
    monkeypatch.setattr("monai_attention.registration.scan.SAMPLED", 1024)
    values = torch.rand(1, 1, 32, 32, 20, generator=torch.Generator().manual_seed(0))
    values[..., 0] += 100
    found = normalised(Scan(values, torch.eye(4, dtype=torch.float64)), upper=90.0)
    assert float(found.values[..., 1:].median()) > 0.3
    assert float(found.values[..., 0].min()) == 1.0
