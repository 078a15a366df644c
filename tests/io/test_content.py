"""What any volume must satisfy: made in memory, so that the format cannot matter."""

from pathlib import Path

import numpy as np
import pytest

from monai_attention.errors import Refusal
from monai_attention.io import content
from monai_attention.io.volume import Requirements, Volume
from tests.io.make_volumes import oblique, ramp

SHAPE = (10, 11, 12)
CT = Requirements(modalities=("CT",), value_range=(-1100, 2000))


def volume(array=None, affine=None, modality=None):
    array = ramp(*SHAPE) if array is None else array
    array = np.asarray(array, np.float32)
    return Volume(
        array if array.ndim == 4 else array[None], oblique() if affine is None else affine, Path("x"), modality
    )


def codes(examined):
    return [(note.kind, note.code) for note in examined.notes]


def refused(*args, **options):
    with pytest.raises(Refusal) as caught:
        content.examine(*args, **options)
    assert caught.value.path == Path("x")
    assert caught.value.remedy
    return caught.value.code


def test_a_sound_volume_passes_unchanged():
    sound = volume()
    examined = content.examine(sound, Requirements())
    assert examined.notes == ()
    assert examined.array is sound.array


def test_row_14_another_modality_is_refused():
    assert refused(volume(modality="MR"), CT) == "E-MODALITY"
    content.examine(volume(modality="MR"))
    content.examine(volume(modality="MR"), Requirements())


def test_row_14_intensities_unlike_the_modality_are_flagged():
    rng = np.random.default_rng(0)
    air, body = np.full((10, 11, 6), -1000.0), rng.normal(40, 20, (10, 11, 6))
    ct = np.concatenate([air, body], axis=-1)
    mr = rng.gamma(2, 100, SHAPE)
    assert codes(content.examine(volume(ct), CT)) == []
    assert codes(content.examine(volume(mr), CT)) == [("flag", "F-MODALITY")]
    assert codes(content.examine(volume(ct), Requirements(value_range=(-50, 1e5)))) == [("flag", "F-MODALITY")]
    assert codes(content.examine(volume(mr), Requirements(value_range=(-50, 1e5)))) == []
    assert codes(content.examine(volume(ct * 1000), CT)) == [("flag", "F-MODALITY")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (np.zeros((3, 3)), "E-AFFINE"),
        (np.full((3, 3), np.nan), "E-AFFINE"),
        (np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), "E-AFFINE"),
        (np.diag([1, 0, 1]), "E-SPACING"),
        (np.diag([1, 1, 1000]), "E-SPACING"),
        (np.diag([1, 1, 0.005]), "E-SPACING"),
    ],
    ids=["zero", "nan", "singular", "no spacing", "a metre", "micrometre"],
)
def test_row_17_and_31_broken_geometry_is_refused(change, code):
    affine = oblique()
    affine[:3, :3] = change
    assert refused(volume(affine=affine)) == code


def test_row_20_shear_is_noted():
    sheared = oblique()
    sheared[:3, 2] += 0.3 * sheared[:3, 0]
    assert codes(content.examine(volume(affine=sheared))) == [("info", "I-SHEAR")]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_23_few_nonfinite_voxels_are_filled_and_flagged_many_refused(bad):
    array = ramp(20, 20, 20, dtype=np.float32) + 5
    array[3, 4, 5] = bad
    before = array.copy()
    examined = content.examine(volume(array))
    assert codes(examined) == [("flag", "F-NONFINITE")]
    assert examined.array[0, 3, 4, 5] == 5
    np.testing.assert_array_equal(array, before)
    array[:3] = bad
    assert refused(volume(array)) == "E-NONFINITE"


def test_row_24_constant_images_are_refused():
    assert refused(volume(np.full(SHAPE, 7))) == "E-CONSTANT"
    channels = np.stack([ramp(*SHAPE), np.zeros(SHAPE)])
    assert refused(volume(channels), Requirements(channels=2)) == "E-CONSTANT"


@pytest.mark.parametrize("shape", [(1, 1, 1), (10, 11, 1), (0, 11, 12)])
def test_row_25_too_few_voxels_are_refused(shape):
    assert refused(volume(np.zeros(shape))) == "E-TOO-SMALL"


def test_row_25_too_small_a_field_of_view_is_refused():
    assert refused(volume(), Requirements(min_extent_mm=8.1)) == "E-TOO-SMALL"  # 10 voxels of 0.8 mm along x
    content.examine(volume(), Requirements(min_extent_mm=7.9))


def test_row_30_spacing_outside_the_trained_range_is_flagged():
    assert codes(content.examine(volume(), Requirements(spacing_mm=(0.5, 2.9)))) == [("flag", "F-SPACING")]
    assert codes(content.examine(volume(), Requirements(spacing_mm=(0.9, 3.0)))) == [("flag", "F-SPACING")]
    assert codes(content.examine(volume(), Requirements(spacing_mm=(0.8, 3.0)))) == []


def test_channels_must_be_the_bundles():
    assert refused(volume(), Requirements(channels=2)) == "E-CHANNELS"
