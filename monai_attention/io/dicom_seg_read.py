"""A DICOM Segmentation back onto the grid of the images it was made on.

Every frame goes to the voxels in the places of its pixels, so the order of frames, and slices that the file leaves out
because they are empty, do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels import iter_pixels

from monai_attention.errors import Refusal
from monai_attention.io.dicom_headers import GEOMETRY_TAGS, PIXEL_TAGS, Plane, Skip, discreet, read_dataset, read_planes
from monai_attention.io.dicom_pixels import check_codec
from monai_attention.io.dicom_seg import IN_PLACE, voxels_of
from monai_attention.io.volume import Volume

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
TAGS = [*PIXEL_TAGS, *GEOMETRY_TAGS, "SegmentSequence", "SegmentationType"]
OUR_VALUE = re.compile(r"value (\d+) of the label map")
"""What `write_segmentation` says of a segment: DICOM numbers the segments of every file 1, 2, 3, ... anew."""


def is_segmentation(path: Path) -> bool:
    """Whether a DICOM file is a Segmentation or a Label Map Segmentation, by its header."""
    with discreet(path):
        return str(read_dataset(path, ["SOPClassUID"]).get("SOPClassUID") or "") in (SEGMENTATION, LABEL_MAP)


def read_segmentation(path: Path, image: Volume) -> tuple[np.ndarray, dict[int, str]]:
    """Labels on the grid of an image.

    A segment's value is its number, or the value that its description gives if this package wrote it.

    Args:
        path: the Segmentation.
        image: the series it was made on, or another image on the same grid.

    Returns:
        Labels, uint16 of shape (X, Y, Z), 0 where no segment is; and the segments' names by value.

    Raises:
        Refusal: E-SEG (no segmentation to be read), E-GRID (frames beside the image's slices), E-LABELS (segments
            overlap, or hold fractions), E-CODEC, E-TRUNCATED.
    """
    planes = read_planes(path, derived=())
    if isinstance(planes, Skip):
        raise Refusal("E-SEG", f"expected a DICOM Segmentation, but the file is {planes.value}", path=path)
    check_codec(planes[0].header)
    with discreet(path):
        dataset = read_dataset(path, TAGS, pixels=True)
        names = {_number(one): str(one.get("SegmentLabel") or "") for one in dataset.get("SegmentSequence") or ()}
    if dataset.get("SegmentationType") == "FRACTIONAL":
        remedy = "export a binary segmentation"
        raise Refusal("E-LABELS", "expected whole labels, got a segmentation of fractions", path=path, remedy=remedy)
    labels = np.zeros(image.shape, np.uint16)
    for plane, frame in zip(planes, _frames(path, dataset), strict=True):
        places = _places(plane, image)
        before = labels[places]
        if np.any((frame > 0) & (before > 0) & (frame != before)):
            remedy = "give a label map in which every voxel has one value"
            raise Refusal("E-LABELS", "two segments hold the same voxel", path=path, remedy=remedy)
        labels[places] = np.maximum(before, frame)
    return labels, {value: name for value, name in names.items() if name and value}


def _frames(path: Path, dataset: Dataset) -> Iterator[np.ndarray]:
    """Values of the label map in each frame, shape (rows, columns)."""
    described = {int(one.SegmentNumber): _number(one) for one in dataset.get("SegmentSequence") or ()}
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()] * int(dataset.NumberOfFrames)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    try:
        with discreet(path):
            for group, frame in zip(groups, iter_pixels(dataset, raw=True), strict=True):
                if dataset.SOPClassUID == LABEL_MAP:
                    yield frame.astype(np.uint16)
                    continue
                found = group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
                number = int(found[0].ReferencedSegmentNumber)
                yield (frame > 0).astype(np.uint16) * np.uint16(described.get(number, number))
    except MemoryError:
        raise
    except Exception as error:  # whatever pydicom or a codec raises; the text may quote values
        message = f"expected a DICOM Segmentation, but reading its frames failed with {type(error).__name__}"
        raise Refusal("E-TRUNCATED", message, path=path, remedy="copy or export the file again") from None


def _number(segment: Dataset) -> int:
    ours = OUR_VALUE.fullmatch(str(segment.get("SegmentDescription") or ""))
    return int(ours[1]) if ours else int(segment.SegmentNumber)


def _places(plane: Plane, image: Volume) -> tuple[np.ndarray, ...]:
    places = voxels_of(plane, image.shape, image.affine, beside=IN_PLACE) if plane.placed else None
    if places is None:
        raise Refusal(
            "E-GRID",
            f"frame {plane.frame + 1} of the segmentation does not lie on the image's voxels",
            path=plane.header.path,
            remedy="give the image that was segmented, or make the segmentation again on this one",
        )
    return places
