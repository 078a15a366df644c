"""Affine registration in the world: from centres of mass and several rotations, coarse to fine, by mutual information.

Mutual information holds for any two contrasts (Viola & Wells 1997, doi:10.1023/A:1007958904918; Mattes et al. 2003,
doi:10.1109/TMI.2003.809072). It is taken over points drawn in the fixed image, half of them in its brighter part, so a
step costs the same whatever the size of the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from monai_attention.registration.fields import identity
from monai_attention.registration.mutual_information import MutualInformation
from monai_attention.registration.progress import OnStep, untold
from monai_attention.registration.scan import Scan, coarser, normalised, transform

RADIUS = 80.0
"""mm; a unit of every parameter moves points this far from the centre by a mm."""


class Level(NamedTuple):
    """A stage of the search.

    Args:
        spacing: mm.
        free: parameters that change: 6 is rigid, 9 with sizes, 12 with shears.
        points: in the fixed image.
        steps: of the optimiser.
        rate: the first step, mm.
    """

    spacing: float
    free: int
    points: int
    steps: int
    rate: float


LEVELS = (Level(8.0, 6, 10_000, 40, 3.0), Level(4.0, 9, 20_000, 60, 1.0), Level(2.0, 12, 40_000, 60, 0.5))
ANGLES = (-25.0, 0.0, 25.0)
"""Degrees about each axis that are tried at first."""
TRIED = 4
"""Of all starts, so many of the best are followed through the first level."""
SMALLEST_MM = 40.0
"""Largest side of a field of view that the levels are made for: heads, trunks, limbs."""
MIRRORED = 1.1
"""How many times as much a mirrored scan must tell to be taken for the right one."""

STAGE = "affine"
"""Its name to those who look at the progress."""


class Affine(NamedTuple):
    """What was found.

    Args:
        matrix: (4, 4), float64: a point of the fixed scan -> where it is in the moving one, RAS mm.
        information: of one scan about the other, nats.
        overlap: share of the smaller field of view that both scans see.
        mirrored: whether the moving scan fits clearly better when it is mirrored; then something is wrong with it.
    """

    matrix: Tensor
    information: float
    overlap: float
    mirrored: bool


def register_affine(
    fixed: Scan,
    moving: Scan,
    *,
    known: Tensor | None = None,
    levels: Sequence[Level] = LEVELS,
    on_step: OnStep = untold,
) -> Affine:
    """The affine transformation under which two scans tell most about each other.

    It finds rotations of up to 40 degrees and any shift that the centres of mass tell. The result never mirrors.

    Args:
        fixed: any contrast and resolution.
        moving: any other.
        known: a matrix that was found in a better way and does not mirror; it is judged, not searched for.
        levels: coarse to fine.
        on_step: progress.

    Raises:
        ValueError: a scan is constant, or smaller than a few cm, or the known matrix mirrors.
    """
    if known is not None and not torch.linalg.det(known[:3, :3]) > 0:
        raise ValueError(f"expected a known matrix that does not mirror; got {known.tolist()}")
    for scan in (fixed, moving):
        if float((scan.spacing * torch.tensor(scan.shape)).max()) < SMALLEST_MM:
            raise ValueError(f"expected a field of view of at least {SMALLEST_MM:g} mm along some axis")
    fixed, moving = normalised(fixed), normalised(moving)
    later = levels[1:] if known is None else ()
    total = 2 * TRIED * levels[0].steps + sum(level.steps for level in later)

    def count() -> None:
        on_step(STAGE, total)

    search, best = _first(fixed, moving, levels[0], count)
    other, mirrored = _first(fixed, replace(moving, values=moving.values.flip(_across(moving))), levels[0], count)
    plain, (turned, seen) = search.judge(search.matrix(best))[0], other.judge(other.matrix(mirrored))
    for level in later:
        search = _Search(fixed, moving, search.centres, level)
        best = search.descend(best, count)
    found = search.matrix(best)
    if known is not None:
        search, found = _Search(fixed, moving, search.centres, levels[-1]), known
    return Affine(found, *search.judge(found), mirrored=seen > 0.5 and turned > MIRRORED * max(plain, 0.0))


def _first(fixed: Scan, moving: Scan, level: Level, count: Callable[[], None]) -> tuple[_Search, Tensor]:
    """The coarsest search, and the best parameters there, from several starts."""
    centres = _centre(fixed), _centre(moving)
    search = _Search(fixed, moving, centres, level)
    starts = sorted(_starts(fixed, centres), key=lambda start: float(search.loss(start).detach()))[:TRIED]
    ends = [search.descend(start, count) for start in starts]
    return search, min(ends, key=lambda end: float(search.loss(end).detach()))


def _across(scan: Scan) -> int:
    """The array axis (of five) that runs from left to right."""
    return 2 + int(scan.affine[0, :3].abs().div(scan.spacing).argmax())


def matrix(parameters: Tensor, fixed_centre: Tensor, moving_centre: Tensor) -> Tensor:
    """Twelve numbers as a matrix (4, 4): shift, rotation, size and shear (three each), about the centres.

    The rotation is a rotation vector, sizes are logarithms; all but the shift are in units of 1 / `RADIUS`.
    """
    shift, rotation, size, shear = parameters.split(3)
    x, y, z = (rotation / RADIUS).unbind()
    zero = torch.zeros_like(x)
    turn = torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))
    a, b, c = (shear / RADIUS).unbind()
    one = torch.ones_like(a)
    skew = torch.stack([one, a, b, zero, one, c, zero, zero, one]).view(3, 3)
    linear = turn @ skew @ torch.diag((size / RADIUS).exp())
    last = moving_centre + shift - linear @ fixed_centre
    bottom = linear.new_tensor([[0.0, 0.0, 0.0, 1.0]])
    return torch.cat([torch.cat([linear, last[:, None]], dim=1), bottom])


def _starts(fixed: Scan, centres: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
    """Parameters to begin from: centre on centre, or as the headers say, each turned in several ways."""
    as_the_headers_say = centres[0] - centres[1]
    for shift in (torch.zeros_like(as_the_headers_say), as_the_headers_say):
        for degrees in itertools.product(ANGLES, repeat=3):
            start = fixed.values.new_zeros(12)
            start[:3] = shift
            start[3:6] = torch.tensor(degrees).deg2rad() * RADIUS
            yield start


def _centre(scan: Scan) -> Tensor:
    """Centre of mass in mm, of the intensities."""
    small = coarser(scan, 4.0)
    weights = small.values.mean(dim=1, keepdim=True)
    return (small.points() * weights).sum(dim=(0, 2, 3, 4)) / weights.sum()


class _Search:
    """Points of the fixed scan, and how well they agree with the moving one under an affine transformation."""

    def __init__(self, fixed: Scan, moving: Scan, centres: tuple[Tensor, Tensor], level: Level) -> None:
        self.centres = centres
        self.level = level
        fixed, self.moving = coarser(fixed, level.spacing), coarser(moving, level.spacing)
        self.points = _drawn(fixed, level.points)
        self.values = fixed.at(self.points, padding="border").mean(dim=1, keepdim=True)
        volumes = [float(scan.spacing.prod()) * scan.values[0, 0].numel() for scan in (fixed, moving)]
        self.enough = 0.5 * min(1.0, volumes[1] / volumes[0])
        self.similarity = MutualInformation(warped_range=(0, 1), fixed_range=(0, 1))

    def loss(self, parameters: Tensor) -> Tensor:
        """Minus the mutual information where both are seen; more, where that is too little of the smaller one."""
        unlike, seen = self._look(matrix(parameters, *self.centres))
        return unlike + 4 * (self.enough - seen).clamp_min(0)

    def matrix(self, parameters: Tensor) -> Tensor:
        """Of parameters, exactly: (4, 4), float64."""
        return matrix(parameters.detach().cpu().double(), *(centre.cpu().double() for centre in self.centres))

    def judge(self, found: Tensor) -> tuple[float, float]:
        """Mutual information in nats, and the share of the smaller field of view that both see."""
        with torch.no_grad():
            unlike, seen = self._look(found)
        return -float(unlike), min(1.0, float(seen) * 0.5 / self.enough)

    def _look(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the mutual information where both are seen, and the share of points where they are."""
        places = transform(self.points, found)
        seen = self.moving.inside(places)
        values = self.moving.at(places, padding="border").mean(dim=1, keepdim=True)
        return self.similarity(values, self.values, seen), seen.mean()

    def descend(self, start: Tensor, count: Callable[[], None]) -> Tensor:
        """The best parameters met on the way down from a start."""
        free = torch.arange(12, device=start.device) < self.level.free
        parameters = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([parameters], lr=self.level.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.level.steps, self.level.rate / 20)
        best, least = start, float("inf")
        for _ in range(self.level.steps):
            loss = self.loss(parameters)
            if float(loss.detach()) < least:
                best, least = parameters.detach().clone(), float(loss.detach())
            optimiser.zero_grad()
            loss.backward()
            assert parameters.grad is not None
            parameters.grad *= free
            optimiser.step()
            schedule.step()
            count()
        return best


def _drawn(scan: Scan, count: int) -> Tensor:
    """Points in random voxels, half of them brighter than the mean, (1, 3, count, 1, 1); the same each time."""
    generator = torch.Generator().manual_seed(0)
    values = scan.values[0].mean(dim=0).flatten().cpu()
    bright = torch.nonzero(values > values.mean()).flatten()
    index = torch.cat(
        [
            torch.randint(len(values), (count - count // 2,), generator=generator),
            bright[torch.randint(len(bright), (count // 2,), generator=generator)],
        ]
    )
    voxels = identity(scan.shape, like=scan.values.cpu()).flatten(1)[:, index]
    voxels = voxels + torch.rand(voxels.shape, generator=generator) - 0.5
    return transform(voxels[None, :, :, None, None].to(scan.values.device), scan.affine)
