"""Two scans in, a transformation out: affine, then a network's field if there is a network, then optimisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_attention.cohort.phases import Phases
from monai_attention.registration.affine import Affine, register_affine
from monai_attention.registration.fields import warp
from monai_attention.registration.optimise import FlowSettings, optimise, whole_ddf
from monai_attention.registration.progress import OnStep, untold
from monai_attention.registration.recognised import Recognise, overlap, pose
from monai_attention.registration.scan import Scan, affine_of_grid, coarser, normalised, part_of
from monai_attention.registration.similarities import similarity, suited
from monai_attention.registration.transformation import Transformation

MARGIN_MM = 12.0
"""Around what is not background in the fixed scan; beyond it the field is as at this edge."""

COARSEST_MM = 8.0
"""Voxels of the first level; with coarser ones self-similarity was seen to lead astray."""

COARSEST_AFTER_NETWORK_MM = 4.0
"""The same where a network has aligned what is coarse: at 8 mm self-similarity was seen to undo that."""

LEAST_GAIN = 0.01
"""In Dice of recognised structures, for which a deformation is kept that makes the images less alike."""

MOST_LOSS = 0.03
"""Of the same, however alike the images become. Less may be none: a network makes what it knows overlap too well."""

Network = Callable[[Scan, Scan], Tensor]
"""From the moving and the fixed scan on one grid to a ddf there, (1, 3, *S)."""


@dataclass(frozen=True)
class Plan:
    """How pairs are registered.

    Args:
        similarity: `lncc`, `mi`, `mind`, or `auto`, by how alike the images are after the affine registration.
        spacing: mm of the grid that the field is sought on.
        steps: of the optimisation on that grid (more on coarser ones); 0: none.
        network: see `Network`; None: none.
        recognise: see `recognised`; the map between structures takes the place of the affine registration where it is
            found, and their overlap has a say in whether a deformation is kept. None: they are not recognised.
    """

    similarity: str = "auto"
    spacing: float = 2.0
    steps: int = 50
    network: Network | None = None
    recognise: Recognise | None = None


WEIGHTS = {"lncc": 1.0, "mi": 2.0, "mind": 0.2}
"""Of smoothness, by similarity."""


@dataclass(frozen=True)
class Registered:
    """What was found, and how good it is.

    Args:
        transformation: fixed world -> moving world.
        similarity: by name; the one that figures are of.
        figures: `unlike` at each stage (`affine`, `network`, `optimised`): lower is better.
        overlaps: of the recognised structures, Dice at each stage, NaN where too few are; empty: none are recognised.
        kept: the stage that the transformation is of: the last one that was not dropped.
        dropped: the stages that were worse than the one kept before them, see `register_pair`.
        affine: what the affine registration found.
        losses: of the optimisation, a list a level.
        start: a guess of the inverse of the deformation.
    """

    transformation: Transformation
    similarity: str
    figures: dict[str, float]
    overlaps: dict[str, float]
    kept: str
    dropped: list[str]
    affine: Affine
    losses: list[list[float]] = field(default_factory=list)
    start: Tensor | None = None


def register_pair(fixed: Scan, moving: Scan, plan: Plan, phases: Phases, *, on_step: OnStep = untold) -> Registered:
    """Find the transformation of one pair.

    A field, the network's or the optimised one, is dropped if it holds NaN or infinity, or is worse than what was kept
    before it, or than the affine registration: the images less alike and recognised structures no closer together, or
    these clearly apart, however alike the images. Across contrasts, likeness alone was seen to refuse good fields.

    Args:
        fixed: any grid.
        moving: any grid, any contrast.
        plan: see `Plan`.
        phases: keeps the time of `affine`, `network` and `optimise`.
        on_step: progress.

    Raises:
        ValueError: a scan is constant, or there is no such similarity.
    """
    with phases.phase("affine"):
        structures = None if plan.recognise is None else (plan.recognise(fixed), plan.recognise(moving))
        known = None if structures is None else pose(*structures)
        affine = register_affine(fixed, moving, known=known, on_step=on_step)
    still, moved, seen = _on_one_grid(normalised(fixed), normalised(moving), affine.matrix, plan.spacing)
    name = suited(moved.values, still.values, seen) if plan.similarity == "auto" else plan.similarity
    judge = _Judge(similarity(name), moved, still, seen, affine.matrix, structures)
    stage, ddf, losses, start = "affine", None, [], None
    dropped: list[str] = []
    judge.improved(stage, ddf, than=stage)
    if plan.network is not None:
        with phases.phase("network"), torch.no_grad():
            found = plan.network(moved, still)
        if judge.improved("network", found, than=stage):
            stage, ddf = "network", found
        else:
            dropped.append("network")
    if plan.steps:
        coarsest_mm = COARSEST_MM if ddf is None else COARSEST_AFTER_NETWORK_MM
        factors = [factor for factor in (8, 4, 2) if factor * plan.spacing <= coarsest_mm]
        settings = FlowSettings(
            judge.unlike,
            weight=WEIGHTS[name],
            factors=[*factors, 1],
            steps=[2 * plan.steps] * len(factors) + [plan.steps],
        )
        with phases.phase("optimise"):
            optimised = optimise(moved.values, still.values, settings, initial=ddf, mask=seen, on_step=on_step)
        losses = optimised.losses
        if judge.improved("optimised", optimised.ddf, than=stage):
            if ddf is None:
                start = whole_ddf(-optimised.velocity, still.shape, settings.integration_steps)
            stage, ddf = "optimised", optimised.ddf
        else:
            dropped.append("optimised")
    transformation = Transformation(affine.matrix, ddf, still.affine)
    return Registered(transformation, name, judge.figures, judge.overlaps, stage, dropped, affine, losses, start)


class _Judge:
    """Says whether a deformation is better than the one before, and keeps what each stage came to."""

    def __init__(
        self,
        unlike: nn.Module,
        moved: Scan,
        still: Scan,
        seen: Tensor,
        matrix: Tensor,
        structures: tuple[Scan, Scan] | None,
    ) -> None:
        self.unlike = unlike
        self.images = moved, still, seen
        self.matrix = matrix
        self.structures = structures
        self.figures: dict[str, float] = {}
        self.overlaps: dict[str, float] = {}

    @torch.no_grad()
    def improved(self, stage: str, ddf: Tensor | None, than: str) -> bool:
        """By likeness, or by recognised structures; what has NaN or infinity anywhere never is: sampling hides that."""
        moved, still, seen = self.images
        if ddf is not None and not bool(ddf.isfinite().all()):
            self.figures[stage] = math.nan
            return False
        warped = moved.values if ddf is None else warp(moved.values, ddf, padding="border")
        self.figures[stage] = float(self.unlike(warped, still.values, seen))
        if self.structures is not None:
            self.overlaps[stage] = overlap(*self.structures, Transformation(self.matrix, ddf, still.affine))
        return all(self._is_better(stage, before) for before in ("affine", than))

    def _is_better(self, stage: str, than: str) -> bool:
        if self.structures is not None:
            gain = self.overlaps[stage] - self.overlaps[than]
            if gain >= LEAST_GAIN or gain <= -MOST_LOSS:
                return gain > 0
        return self.figures[stage] <= self.figures[than]


def _on_one_grid(fixed: Scan, moving: Scan, matrix: Tensor, spacing: float) -> tuple[Scan, Scan, Tensor]:
    """Both scans on a grid of even spacing around what is to be seen in the fixed one, and where both are seen."""
    fixed = evenly_spaced(cropped(fixed, MARGIN_MM), spacing)
    points = Transformation(matrix)(fixed.points())
    moving = coarser(moving, spacing)
    moved = Scan(moving.at(points, padding="border"), fixed.affine)
    return fixed, moved, moving.inside(points)


def cropped(scan: Scan, margin_mm: float, threshold: float = 0.05) -> Scan:
    """The part of a normalised scan that is brighter than a threshold, and some mm around it."""
    bright = (scan.values[0] > threshold).any(dim=0)
    box = []
    for axis, step in enumerate(scan.spacing.tolist()):
        found = bright.any(dim=[other for other in range(3) if other != axis]).nonzero().flatten()
        margin = round(margin_mm / step)
        box.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin))
    return part_of(scan, box)


def evenly_spaced(scan: Scan, spacing: float) -> Scan:
    """The same with about this spacing along all axes: means where it was finer, interpolated where it was coarser."""
    scan = coarser(scan, spacing)
    size = [max(n, round(n * s / spacing)) for n, s in zip(scan.shape, scan.spacing.tolist(), strict=True)]
    if tuple(size) == scan.shape:
        return scan
    values = F.interpolate(scan.values, size=tuple(size), mode="trilinear")
    return replace(scan, values=values, affine=affine_of_grid(scan, size))
