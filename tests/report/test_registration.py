"""The picture of a registration: the planes of whole volumes, of which only these planes were computed."""

import nibabel
import numpy as np
import pytest

from monai_attention.io.geometry import spacing
from monai_attention.report.preview import grey_window
from monai_attention.report.registration import registration_sheet
from tests.io.make_volumes import oblique

SHAPE = (220, 30, 24)


def volumes():
    """A fixed scan, a moving one before and after, a displacement and a Jacobian with folds."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij")
    noise = np.random.default_rng(0).normal(0, 0.01, (2, *SHAPE)).astype(np.float32)
    fixed = np.exp(-4 * ((x - 0.3) ** 2 + (y + 0.2) ** 2 + z**2))
    return fixed, fixed + x * noise[0], fixed + y * noise[1], np.stack([3 * x * y, 2 * y, -4 * z * x]), 1 + x - y


@pytest.mark.parametrize("affine", [np.eye(4), oblique()[:, [2, 0, 1, 3]], np.diag([-1.0, 2, -3, 1])])
def test_only_what_is_drawn_is_looked_at(affine):
    fixed, before, after, mm, jacobian = volumes()
    seen = []

    def look(array):
        def part(box):
            found = array[(..., *box)]
            seen.append(found[0].size if found.ndim == 4 else found.size)
            return found

        return part

    arguments = (fixed, look(before), look(after), look(mm), jacobian, affine, {"folds, %": "0"})
    picture = np.asarray(registration_sheet(*arguments))
    assert picture.std() > 10
    assert max(seen) < fixed.size / 2
    other = np.asarray(registration_sheet(*arguments[:2], look(before), *arguments[3:]))
    assert (picture != other).any()


def test_grey_values_are_those_of_the_whole_volume(monkeypatch):
    """The window is that of the canonical volume, which is sampled from its own first voxel, and so are the planes."""
    from monai_attention.report import registration

    fixed, before, after, mm, jacobian = volumes()
    affine = np.diag([-1.0, 2, -3, 1])
    windows = []
    monkeypatch.setattr(registration, "grey_window", lambda image: windows.append(grey_window(image)) or windows[-1])
    registration_sheet(fixed, before.__getitem__, after.__getitem__, lambda box: mm[(..., *box)], jacobian, affine, {})
    turned = [nibabel.apply_orientation(v, nibabel.io_orientation(affine)) for v in (fixed, before, after)]
    assert windows == [grey_window(one) for one in turned]
    assert spacing(affine).tolist() == [1, 2, 3]


def test_the_bent_grid_follows_the_axes_of_the_scan(monkeypatch):
    """Displaced by 5 mm along its first axis, wherever that points."""
    from monai_attention.report import registration

    fixed, *_, jacobian = volumes()
    affine = oblique()
    along = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    mm = np.broadcast_to(5 * along[:, None, None, None], (3, *SHAPE)).astype(np.float32)
    drawn = []
    mesh = registration._mesh
    monkeypatch.setattr(
        registration, "_mesh", lambda places, moved, *more: drawn.append(moved) or mesh(places, moved, *more)
    )
    look = fixed.__getitem__
    registration_sheet(fixed, look, look, lambda box: mm[(..., *box)], jacobian, affine, {})
    sizes = sorted(round(float(np.abs(part).max()), 3) for parts in drawn for part in parts)
    assert sizes == [0, 0, 0, 0, 5, 5]
