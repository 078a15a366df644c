"""The preview shows the right side on the right side, in true proportions, whatever the grid."""

import itertools
from io import BytesIO

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_attention.report.colours import colour
from monai_attention.report.preview import PANEL, preview, slices_through, write_preview
from monai_attention.report.sheet import LINE, MARGIN

CLASSES = {0: "background", 1: "lesion"}


def overlay_boxes(picture, panel_height=PANEL, columns=(PANEL, PANEL, PANEL)):
    """Bounding box (left, top, right, bottom) of class 1 in each of the three overlays, relative to the panel."""
    pixels = np.asarray(picture)
    top = LINE + (panel_height + 2 * MARGIN) + MARGIN
    left, boxes = 0, []
    for width in columns:
        panel = pixels[top : top + panel_height, left + MARGIN : left + MARGIN + width]
        rows, cols = np.nonzero((panel == colour(1)).all(axis=-1))
        boxes.append((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
        left += width + 2 * MARGIN
    return boxes


def test_right_anterior_superior_lies_left_and_up_as_radiologists_expect():
    image, labels = np.zeros((100, 100, 100), np.float32), np.zeros((100, 100, 100), np.uint8)
    labels[80:95, 70:90, 60:85] = 1  # in RAS: towards the patient's right, front and top
    boxes = overlay_boxes(preview(image, labels, np.eye(4), CLASSES))
    pixels = PANEL // 100
    x, y, z = (5, 20), (10, 30), (15, 40)  # distances from the right, front and top faces in mm
    expected = [(x, y), (x, z), (y, z)]
    assert boxes == [tuple(pixels * mm for mm in (a[0], b[0], a[1], b[1])) for a, b in expected]


def test_any_order_and_direction_of_array_axes_gives_the_same_picture():
    rng = np.random.default_rng(0)
    image = rng.random((20, 25, 30)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[3:9, 4:20, 10:14] = 1
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    expected = np.asarray(preview(image, labels, affine, CLASSES))
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            orientation = np.stack([order, flips], axis=1)
            other = affine @ nibabel.orientations.inv_ornt_aff(orientation, image.shape)
            turned = [nibabel.apply_orientation(array, orientation) for array in (image, labels)]
            np.testing.assert_array_equal(np.asarray(preview(*turned, other, CLASSES)), expected)


def test_planes_have_true_proportions_and_the_bar_its_length():
    spacing = (1.0, 2.0, 8.0)
    shape = tuple(int(200 / mm) for mm in spacing)
    labels = np.zeros(shape, np.uint8)
    labels[100:140, 20:60, 5:15] = 1  # 40 x 80 x 80 mm
    picture = preview(np.zeros(shape, np.float32), labels, np.diag([*spacing, 1.0]), CLASSES)
    sizes = [(right - left, bottom - top) for left, top, right, bottom in overlay_boxes(picture)]
    assert sizes == [(80, 160), (80, 160), (160, 160)]  # 2 pixels a mm
    bar = np.asarray(picture)[LINE + 2 * (PANEL + 2 * MARGIN) + 4, MARGIN : MARGIN + 85]
    assert (bar > 200).all(axis=-1).argmin() == 41  # 20 mm and its last tick


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1, 1), (64, 64, 1), (2, 300, 5)])
@pytest.mark.parametrize("fill", ["zeros", "nan", "inf", "noise"])
@pytest.mark.parametrize("label", [0, 255])
def test_thin_empty_constant_and_broken_volumes_still_get_a_picture(shape, fill, label):
    image = {"zeros": np.zeros(shape), "nan": np.full(shape, np.nan), "inf": np.full(shape, np.inf)}.get(
        fill, np.random.default_rng(0).random(shape)
    )
    affine = np.diag([0.5, 1.0, 12.0, 1.0])
    affine[1, 2] = 4.0  # sheared
    picture = preview(image.astype(np.float32), np.full(shape, label, np.uint8), affine, {255: "n" * 300})
    assert picture.mode == "RGB"
    assert max(picture.size) < 2000


def test_slices_go_where_there_is_something_to_see():
    two_kidneys = np.zeros((21, 9, 9), np.uint8)
    two_kidneys[2:6] = two_kidneys[17:19] = 1  # their common centre lies in between
    assert slices_through(two_kidneys)[0] == 5
    assert slices_through(np.zeros((5, 6, 7), np.uint8)) == [2, 3, 3]


def test_a_hundred_classes_list_the_largest_and_say_so():
    labels = np.arange(128, dtype=np.uint8).reshape(8, 4, 4)
    few = preview(labels.astype(np.float32), labels, np.eye(4), {label: f"class {label}" for label in range(1, 25)})
    many = preview(labels.astype(np.float32), labels, np.eye(4), {label: f"class {label}" for label in range(1, 128)})
    assert many.height == few.height + LINE


def test_image_and_labels_must_share_a_grid():
    with pytest.raises(ValueError, match="share one shape"):
        preview(np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 3), np.uint8), np.eye(4), CLASSES)


def test_row_60_the_picture_file_holds_pixels_and_no_text(tmp_path):
    picture = Image.new("RGB", (4, 4))
    picture.info["Comment"] = "DOE^JANE"
    write_preview(tmp_path / "preview.png", picture)
    data = (tmp_path / "preview.png").read_bytes()
    kinds, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]
    assert Image.open(BytesIO(data)).size == (4, 4)


def test_every_label_has_its_own_colour():
    assert len({colour(label) for label in range(1, 256)}) == 255
    assert colour(1) == (230, 159, 0)
    with pytest.raises(ValueError, match="start at 1"):
        colour(0)
