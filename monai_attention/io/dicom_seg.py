"""Labels as a DICOM Segmentation that refers to the images they were made from.

One frame for each source image and segment, in the place of that image, so a tilted gantry is no obstacle. This is the
only output that carries the patient's fields: the standard requires them, and copies of the source's are what it wants.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
from highdicom import PatientSexValues
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, DSfloat

import monai_attention
from monai_attention.errors import Refusal
from monai_attention.io.dicom_geometry import plane_affine
from monai_attention.io.dicom_headers import Plane, Skip, discreet, read_dataset, read_planes
from monai_attention.io.volume import Volume
from monai_attention.io.write import replacing

logger = logging.getLogger(__name__)

IN_PLACE = 0.01
"""Largest distance, in voxels, of a source pixel from the voxel whose label it takes, within the slice."""
BESIDE = 0.5
"""The same across slices: labels of a volume that was resampled over gaps go back to the nearest slice."""
LONGEST_TEXT = 64
"""Characters in a DICOM long string (VR LO)."""
ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
"""What a segment is called when nothing more exact is known."""
PATIENT_AND_STUDY: dict[str, Callable[[str], object]] = {
    "PatientID": str,
    "PatientName": str,
    "PatientBirthDate": DA,
    "PatientSex": PatientSexValues,
    "AccessionNumber": str,
    "StudyID": str,
    "StudyDate": DA,
    "StudyTime": TM,
    "ReferringPhysicianName": str,
}
"""Fields that a Segmentation must have, if only empty, and what reads them."""


@dataclass(frozen=True)
class Segment:
    """A class of a label map.

    Args:
        number: its value in the label map, 1 to 255.
        name: what readers are shown; cut at 64 characters.
        concept: code, coding scheme and meaning of the structure, for example ("10200004", "SCT", "Liver"); a general
            anatomical structure where none is given.
        category: the same for its category, for example ("49755003", "SCT", "Morphologically Altered Structure").
    """

    number: int
    name: str
    concept: tuple[str, str, str] | None = None
    category: tuple[str, str, str] | None = None


def write_segmentation(
    path: str | Path,
    labels: np.ndarray,
    volume: Volume,
    segments: Sequence[Segment],
    *,
    algorithm_name: str,
    algorithm_version: str,
) -> None:
    """Write a binary DICOM Segmentation beside its source series.

    DICOM numbers the segments of a file 1, 2, 3, ... without holes. Classes without a voxel are left out, so the file's
    numbers may differ from those of the label map; names and codes do not, and each segment's description tells its
    value in the label map. If all classes are empty they are all described, with empty frames.

    Args:
        path: where to; replaced at once, never partly written.
        labels: uint8, shape (X, Y, Z), on the grid of `volume`; 0 is background.
        volume: as the DICOM reader returned it; its `slice_files` must still be there.
        segments: the classes; every value in `labels` but 0 needs one.
        algorithm_name: what made the labels.
        algorithm_version: its version.

    Raises:
        ValueError: `labels` are not uint8 on the grid of `volume`, or a value has no segment.
        Refusal: `E-SEG` if the volume did not come from one DICOM series or multi-frame file, or the files are not
            where the volume lies; `E-DISK-FULL` and others of writing.
    """
    _check_labels(labels, volume, segments)
    planes = _source_planes(volume)
    sources = _sources(planes, _slice_distance(planes[0], volume))
    present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256))) - {0}
    described = sorted((s for s in segments if s.number in present or not present), key=lambda s: s.number)
    renumber = np.zeros(256, dtype=np.uint8)
    renumber[[segment.number for segment in described]] = np.arange(1, len(described) + 1)
    frames = np.stack([renumber[labels_on_plane(labels, volume.affine, plane)] for plane in planes])
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=algorithm_name[:LONGEST_TEXT],
        family=Code("123109", "DCM", "Artificial Intelligence"),
        version=algorithm_version[:LONGEST_TEXT],
    )
    with discreet(Path(path)), _naming_the_source(volume):
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(k, segment, algorithm) for k, segment in enumerate(described, start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=(planes[0].header.series_number or 0) + 1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="monai_attention",
            manufacturer_model_name=algorithm_name[:LONGEST_TEXT],
            software_versions=monai_attention.__version__,
            device_serial_number="none",
            content_label="SEGMENTATION",
            series_description=f"Segmentation by {algorithm_name}"[:LONGEST_TEXT],
            specific_character_set="ISO_IR 192",
        )
    with discreet(Path(path)), replacing(path) as temporary:
        segmentation.save_as(temporary)


def labels_on_plane(labels: np.ndarray, affine: np.ndarray, plane: Plane) -> np.ndarray:
    """Labels of the voxels in the places of a source image's pixels, shape (rows, columns).

    Args:
        labels: shape (X, Y, Z).
        affine: voxel of `labels` -> RAS mm; its axes may be flipped or permuted against the image's.
        plane: the source image.

    Raises:
        Refusal: `E-SEG` if the image does not lie on the grid.
    """
    places = voxels_of(plane, labels.shape, affine)
    if places is None:
        raise Refusal(
            "E-SEG",
            "expected the source image on the grid of the labels, but it lies elsewhere",
            path=plane.header.path,
            remedy="segment the series again; its files have changed",
        )
    return labels[places]


def voxels_of(
    plane: Plane, shape: Sequence[int], affine: np.ndarray, *, beside: float = BESIDE
) -> tuple[np.ndarray, ...] | None:
    """The voxels in the places of a plane's pixels, an array (rows, columns) for each axis; None if it lies elsewhere.

    Args:
        plane: an image or a frame of a segmentation.
        shape: voxels of the grid along x, y, z.
        affine: its voxel -> RAS mm; its axes may be flipped or permuted against the image's.
        beside: largest distance of the plane from the nearest slice, in voxels.
    """
    to_voxel = np.linalg.inv(affine) @ plane_affine(plane)
    rows, columns = plane.header.size
    index = []
    for (along_row, along_column, _, start), size in zip(to_voxel[:3], shape, strict=True):
        exact = start + along_row * np.arange(columns)[None, :] + along_column * np.arange(rows)[:, None]
        nearest = np.rint(exact).astype(np.intp)
        across = max(abs(along_row), abs(along_column)) < IN_PLACE
        if (
            np.abs(exact - nearest).max() > (beside if across else IN_PLACE)
            or nearest.min() < 0
            or nearest.max() >= size
        ):
            return None
        index.append(nearest)
    return tuple(index)


def _check_labels(labels: np.ndarray, volume: Volume, segments: Sequence[Segment]) -> None:
    if labels.dtype != np.uint8 or labels.shape != volume.shape:
        raise ValueError(f"labels must be uint8 of shape {volume.shape}, got {labels.dtype} of shape {labels.shape}")
    numbers = [segment.number for segment in segments]
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 1 or max(numbers) > 255:
        raise ValueError(f"segments must have different numbers from 1 to 255, got {numbers}")
    unknown = set(np.unique(labels).tolist()) - {0, *numbers}
    if unknown:
        raise ValueError(f"labels must be 0 or one of {sorted(numbers)}, got also {sorted(unknown)}")


def _source_planes(volume: Volume) -> list[Plane]:
    """The images to refer to: one a file in the order of the slices, or all frames of one file in their own order."""
    planes: list[Plane] = []
    for path in volume.slice_files:
        found = read_planes(path)
        if isinstance(found, Skip):
            raise Refusal("E-SEG", f"expected a DICOM image, but the file is {found.value}", path=path)
        planes += found
    if not planes or (len(volume.slice_files) > 1 and len(planes) > len(volume.slice_files)):
        count = len(volume.slice_files)
        raise Refusal(
            "E-SEG",
            f"expected single-frame DICOM images or one multi-frame file to refer to, got {count} files",
            path=volume.source,
            remedy="give a DICOM series as input, or write NIfTI",
        )
    return planes


def _sources(planes: Sequence[Plane], distance: float) -> list[Dataset]:
    """The source data sets without pixels, made fit to be referred to; `distance` is that of slices, in mm.

    What highdicom insists on and real files may lack is filled in: emptied UIDs with stand-ins made from the image's
    own UID, missing or malformed fields with nothing, an orientation that jitters in its last digit with that of the
    first image. The distance of slices is the true one, whatever an optional tag says, because highdicom copies it.
    """
    sources = []
    for path in dict.fromkeys(plane.header.path for plane in planes):
        with discreet(path):
            source = read_dataset(path)
            source.decode()
            for keyword, reads in PATIENT_AND_STUDY.items():
                if not _readable(source, keyword, reads):
                    setattr(source, keyword, None)
        sources.append(source)
    first = sources[0]
    stand_ins = {
        keyword: generate_uid(entropy_srcs=[keyword, str(first.get("SOPInstanceUID")), planes[0].header.path.name])
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        if not first.get(keyword)
    }
    if stand_ins:
        logger.warning("%s: made stand-ins for the emptied %s", planes[0].header.path.parent, ", ".join(stand_ins))
    for source in sources:
        for keyword, uid in stand_ins.items():
            setattr(source, keyword, uid)
        if "SharedFunctionalGroupsSequence" in source or "PerFrameFunctionalGroupsSequence" in source:
            measures = _share_geometry(source)
        else:
            source.ImageOrientationPatient = first.ImageOrientationPatient
            measures = source
        measures.SliceThickness = measures.get("SliceThickness") or distance
        measures.SpacingBetweenSlices = DSfloat(distance, auto_format=True)
    return sources


def _readable(source: Dataset, keyword: str, reads: Callable[[str], object]) -> bool:
    """Whether a field is there, and empty or well-formed."""
    try:
        if source[keyword].value:
            reads(str(source[keyword].value))
    except KeyError:
        return False
    except ValueError:  # its text quotes the value
        logger.warning("the malformed %s of a source image was left out", keyword)
        return False
    return True


@contextmanager
def _naming_the_source(volume: Volume) -> Iterator[None]:
    """Turns what highdicom says about source images it cannot work with into a refusal that quotes none of it."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Refusal(
            "E-SEG",
            f"expected source images that a Segmentation can refer to, but {type(error).__name__} came of them",
            path=volume.source,
            remedy="write NIfTI instead",
        ) from None


def _share_geometry(source: Dataset) -> Dataset:
    """Copies what all frames have in common to the shared functional groups, where alone highdicom looks for it.

    Returns:
        The item of the shared pixel measures.
    """
    if not source.get("SharedFunctionalGroupsSequence"):
        source.SharedFunctionalGroupsSequence = [Dataset()]
    shared = source.SharedFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared:
            setattr(shared, name, source.PerFrameFunctionalGroupsSequence[0][name].value)
    return shared.PixelMeasuresSequence[0]


def _slice_distance(plane: Plane, volume: Volume) -> float:
    """Distance in mm of the volume's slices, along the normal of a source image."""
    in_plane = plane_affine(plane)[:3, :2]
    normal = np.cross(*(in_plane / np.linalg.norm(in_plane, axis=0)).T)
    return float(np.abs(normal @ volume.affine[:3, :3]).max())


def _describe(
    number: int, segment: Segment, algorithm: highdicom.AlgorithmIdentificationSequence
) -> highdicom.seg.SegmentDescription:
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:LONGEST_TEXT],
        segmented_property_category=Code(*segment.category) if segment.category else ANATOMY,
        segmented_property_type=Code(*segment.concept) if segment.concept else ANATOMY,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    description.SegmentDescription = f"value {segment.number} of the label map"
    return description
