import csv
import json

import itk
import nibabel
import numpy as np
import pytest
import torch

from monai_attention import Refusal
from monai_attention.cli import main
from monai_attention.io.fields import write_field
from monai_attention.io.volume import ReadOptions
from monai_attention.registration import apply
from monai_attention.registration.pairs import find_pairs
from monai_attention.registration.register import register
from monai_attention.registration.scan import Scan, transform
from monai_attention.synthesis.phantom import head_image
from tests.io.make_dicom import write_series
from tests.io.make_volumes import write_nifti
from tests.io.test_fields import by_itk
from tests.registration.make_scans import T2, moved, rigid
from tests.registration.test_fields import smooth

FAST = {"spacing": 4.0, "optimize": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A head, and the same deformed, turned, of another contrast and on another grid; with labels and landmarks."""
    folder = tmp_path_factory.mktemp("pair")
    image, labels, affine = head_image(4.0)
    write_nifti(folder / "fixed.nii.gz", image, affine)
    write_nifti(folder / "fixed_labels.nii.gz", labels.astype(np.float32), affine)
    truth = rigid((5, -8, 10), (12, 6, -9))
    other, labels, _ = head_image(4.0, brightness=T2, seed=1)
    for name, array, mode in (("moving", other, "linear"), ("labels", labels.astype(np.float32), "nearest")):
        scan = Scan(torch.from_numpy(array)[None, None], torch.from_numpy(affine))
        bent = scan.at(transform(bent_places(scan), scan.affine), mode=mode, padding="border")
        turned = moved(Scan(bent, scan.affine), truth, mode=mode)
        write_nifti(folder / f"{name}.nii.gz", turned.values[0, 0].numpy(), turned.affine.numpy())
    return folder


def bent_places(scan):
    from monai_attention.registration.fields import identity

    ddf = smooth(scan.shape, 3.0, dtype=torch.float32)
    return identity(scan.shape, like=ddf)[None] + ddf


@pytest.fixture(scope="module")
def result(folder):
    (one,) = register(
        folder / "fixed.nii.gz",
        folder / "moving.nii.gz",
        folder / "out",
        labels=folder / "labels.nii.gz",
        fixed_labels=folder / "fixed_labels.nii.gz",
        inverse=True,
        **FAST,
    )
    return one


def test_labels_come_to_lie_on_each_other(result, folder):
    assert (result.verdict, result.code) == ("ok", "")
    assert result.figures["similarity"] == "mind"  # the contrasts differ
    assert result.figures["Dice, registered"] > result.figures["Dice, affine"] + 0.05
    assert result.figures["unlike, optimised"] < result.figures["unlike, affine"]
    assert result.figures["folds, %"] == 0
    fixed = nibabel.load(folder / "fixed.nii.gz")
    for kind in ("warped", "labels", "jacobian"):
        image = nibabel.load(result.outputs[kind])
        assert image.shape == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    assert nibabel.load(result.outputs["labels"]).get_data_dtype() == np.uint16
    assert "Registration report" in (folder / "out/report.html").read_text()
    assert result.outputs["preview"].stat().st_size > 10_000


def test_itk_warps_as_we_did(result, folder):
    moving = itk.imread(folder / "moving.nii.gz", itk.D)
    transform, _kept = by_itk(result.outputs["field"])
    fixed = itk.imread(folder / "fixed.nii.gz", itk.D)
    theirs = itk.resample_image_filter(moving, transform=transform, use_reference_image=True, reference_image=fixed)
    ours = np.asarray(nibabel.load(result.outputs["warped"]).dataobj)
    inside = (slice(3, -3),) * 3
    difference = np.abs(itk.array_from_image(theirs).T - ours)[inside]
    assert difference.max() < 0.01 * ours.max()


def test_files_can_be_applied_inverted_and_looked_at(result, folder, tmp_path, capsys):
    field, inverse = result.outputs["field"], result.outputs["inverse"]
    assert main(["warp", str(folder / "moving.nii.gz"), "--field", str(field), "-o", str(tmp_path / "w.nii.gz")]) == 0
    warped = np.asarray(nibabel.load(tmp_path / "w.nii.gz").dataobj)
    np.testing.assert_allclose(warped, nibabel.load(result.outputs["warped"]).dataobj, atol=0.5)  # of about 1000
    assert main(["jacobian", str(field), "-o", str(tmp_path / "j.nii.gz")]) == 0
    jacobian = np.asarray(nibabel.load(tmp_path / "j.nii.gz").dataobj)
    np.testing.assert_allclose(jacobian, nibabel.load(result.outputs["jacobian"]).dataobj, atol=1e-3)
    assert "folds at 0 %" in capsys.readouterr().out
    again = ["invert", str(field), "--grid", str(folder / "moving.nii.gz"), "-o", str(tmp_path / "i.nii.gz")]
    assert main(again) == 0
    both = [np.asarray(nibabel.load(path).dataobj) for path in (tmp_path / "i.nii.gz", inverse)]
    # One inverts on the file's grid, the other on that of the search; in mm, of voxels of 4.
    assert np.median(np.abs(both[0] - both[1])) < 0.1
    labels = tmp_path / "l.nii.gz"
    apply.warp(folder / "labels.nii.gz", field, labels, mode="nearest")
    assert nibabel.load(labels).get_data_dtype() == np.uint16
    back = np.abs(np.asarray(nibabel.load(labels).dataobj) - np.asarray(nibabel.load(result.outputs["labels"]).dataobj))
    assert (back > 0).mean() < 1e-3


def test_row_59_a_field_that_folds_is_not_inverted(folder, result, tmp_path):
    image = nibabel.load(result.outputs["field"])
    array = np.array(image.dataobj)
    array[..., 0] += 60 * np.sin(np.arange(array.shape[0]) * 0.6)[:, None, None, None]
    folded = nibabel.Nifti1Image(array, image.affine, image.header)
    nibabel.save(folded, tmp_path / "folded.nii.gz")
    with pytest.raises(Refusal, match="E-NO-INVERSE") as refused:
        apply.invert(tmp_path / "folded.nii.gz", tmp_path / "i.nii.gz")
    assert "folded.nii.gz" in str(refused.value)
    assert not (tmp_path / "i.nii.gz").exists()


def test_a_field_of_one_slice_is_refused(tmp_path):
    write_field(tmp_path / "flat.nii.gz", np.zeros((3, 8, 8, 1), np.float32), np.eye(4))
    for verb in ("jacobian", "invert"):
        assert main([verb, str(tmp_path / "flat.nii.gz"), "-o", str(tmp_path / "o.nii.gz")]) == 2
    assert not (tmp_path / "o.nii.gz").exists()


def test_finished_pairs_are_kept_and_a_bad_one_does_not_stop_the_others(result, folder):
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["fixed", "moving", "id"], ["fixed.nii.gz", "fixed.nii.gz", "same"]])
        writer.writerow(["fixed.nii.gz", "broken.nii.gz", "bad"])
        writer.writerow(["fixed.nii.gz", "missing.nii.gz", "gone"])
    (folder / "broken.nii.gz").write_bytes((folder / "moving.nii.gz").read_bytes()[:2000])
    same, bad, gone = register(folder / "pairs.csv", output=folder / "cohort", **FAST)
    assert (gone.verdict, gone.code) == ("refused", "E-NOT-FOUND")
    assert (same.code, bad.verdict, bad.code) == ("F-NOT-IMPROVED", "refused", "E-TRUNCATED")  # it lay right before
    field = np.asarray(nibabel.load(same.outputs["field"]).dataobj)
    assert np.abs(field).max() < 1  # mm: nothing had to move
    same, *_ = register(folder / "pairs.csv", output=folder / "cohort", **FAST)
    assert same.resumed
    record = json.loads((folder / "cohort/same/run.json").read_text())
    assert record["parameters"] == {"similarity": "auto", "spacing_mm": 4.0, "steps": 20}


def test_row_57_what_does_not_fit_is_flagged(folder, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((30, 30, 30)).astype(np.float32)
    write_nifti(tmp_path / "noise.nii.gz", noise, np.diag([9.0, 9, 9, 1]))
    (one,) = register(folder / "fixed.nii.gz", tmp_path / "noise.nii.gz", tmp_path / "out", **FAST)
    assert one.verdict == "flagged"
    assert "F-UNLIKE" in (tmp_path / "out/noise_to_fixed/run.json").read_text()


def test_landmarks_are_measured_in_mm(folder, tmp_path):
    table = tmp_path / "points.csv"
    table.write_text("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n0,0,0,3,4,0\n10,0,0,10,0,0\n")
    fixed = folder / "fixed.nii.gz"
    (one,) = register(fixed, fixed, tmp_path / "out", landmarks=table, spacing=5.0, optimize=0)
    assert one.figures["landmarks, affine, mm"] == pytest.approx(2.5, abs=0.2)
    assert one.figures["landmarks, affine, mm"] == one.figures["landmarks, registered, mm"]
    table.write_text("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n0,0,0,3,4,x\n")
    (one,) = register(fixed, fixed, tmp_path / "out", landmarks=table, spacing=5.0, optimize=0)
    assert (one.verdict, one.code) == ("refused", "E-CSV")


def test_pairs_are_named_and_checked_before_anything_is_read(folder, tmp_path):
    (pair,) = find_pairs(folder / "fixed.nii.gz", folder / "moving.nii.gz")
    assert pair.id == "moving_to_fixed"
    with pytest.raises(Refusal, match="labels of the fixed scan alone"):
        find_pairs(folder / "fixed.nii.gz", folder / "moving.nii.gz", fixed_labels=folder / "fixed_labels.nii.gz")
    with pytest.raises(Refusal, match="expected two scans"):
        find_pairs(folder / "fixed.nii.gz")
    table = tmp_path / "pairs.csv"
    for text, complaint in (("fixed,moving\n", "E-EMPTY"), ("fixed,moving\na,b,c\n", "row 1 has more cells")):
        table.write_text(text)
        with pytest.raises(Refusal, match=complaint):
            find_pairs(table)
    with pytest.raises(Refusal, match="beside a table"):
        find_pairs(table, labels="labels.nii.gz")
    unreadable = tmp_path / "folder.csv"
    unreadable.mkdir()
    with pytest.raises(Refusal, match="E-UNREADABLE"):
        find_pairs(unreadable)
    table.write_text("fixed,moved\na,b\n")
    with pytest.raises(Refusal, match="expected the columns fixed, moving"):
        find_pairs(table)
    path = folder / "fixed.nii.gz"
    table.write_text(f"fixed,moving\n{path},{path}\n{path},{path}\n")
    with pytest.raises(Refusal, match="E-DUPLICATE-CASE"):
        find_pairs(table)


def test_labels_are_labels(folder, tmp_path):
    """0 beyond the field of view, whatever the least label; whole numbers; made when a finished pair gets some."""
    fixed = folder / "fixed.nii.gz"
    image = nibabel.load(fixed)
    ones = np.full(image.shape, 3.0, np.float32)
    ones[::2] = 7
    part = nibabel.Nifti1Image(ones[:20], image.affine)
    nibabel.save(part, tmp_path / "part.nii.gz")
    plan = {"spacing": 4.0, "optimize": 0}
    (plain,) = register(fixed, fixed, tmp_path / "out", **plan)
    (one,) = register(fixed, fixed, tmp_path / "out", labels=tmp_path / "part.nii.gz", **plan)
    assert not one.resumed
    found = np.asarray(nibabel.load(one.outputs["labels"]).dataobj)
    assert set(np.unique(found)) == {0, 3, 7}
    assert not found[25:].any()
    nibabel.save(nibabel.Nifti1Image(ones * 0.3, image.affine), tmp_path / "soft.nii.gz")
    (one,) = register(fixed, fixed, tmp_path / "out", labels=tmp_path / "soft.nii.gz", **plan)
    assert (one.verdict, one.code) == ("refused", "E-LABELS")
    nibabel.save(nibabel.Nifti1Image(ones * 0, image.affine), tmp_path / "none.nii.gz")
    (one,) = register(fixed, fixed, tmp_path / "out", labels=tmp_path / "none.nii.gz", **plan)
    assert one.verdict == "ok"
    assert not np.asarray(nibabel.load(one.outputs["labels"]).dataobj).any()
    with pytest.raises(Refusal, match="E-FORMAT"):
        apply.warp(fixed, plain.outputs["field"], tmp_path / "w.mha")


def test_a_pair_is_read_as_asked_for(folder, tmp_path):
    """Each choice holds for the scan that needs it: one of several series for this one, a volume for the other."""
    image = nibabel.load(folder / "fixed.nii.gz")
    values, right_handed = np.asarray(image.dataobj)[::-1, ::-1], image.affine @ np.diag([-1.0, -1, 1, 1])
    right_handed[:3, 3] = image.affine[:3, 3] + image.affine[:3, :2] @ (np.array(image.shape[:2]) - 1)
    for uid, array in (("1.2.3", values), ("1.2.4", values * 0 + np.arange(values.shape[2]))):
        write_series(tmp_path / "fixed", array, right_handed, SeriesInstanceUID=uid, prefix=f"s{uid}")
    several = np.stack([np.zeros(image.shape, np.float32), np.asarray(image.dataobj, np.float32)], axis=-1)
    moving = write_nifti(tmp_path / "moving.nii.gz", several, image.affine)

    def run(**choices):
        options = ReadOptions(**choices)
        (one,) = register(tmp_path / "fixed", moving, tmp_path / "out", spacing=8.0, optimize=0, options=options)
        return one

    assert run(series="1.2.3", volume=1).code == ""
    for choices, code in (({"volume": 1}, "E-SERIES"), ({"series": "1.2.3"}, "E-4D")):
        assert run(**choices).code == code
    (wrong,) = register(
        write_series(tmp_path / "one", values, right_handed, SeriesInstanceUID="1.2.5")[0].parent,
        folder / "moving.nii.gz",
        tmp_path / "out",
        options=ReadOptions(series="1.9"),
    )
    assert (wrong.verdict, wrong.code) == ("refused", "E-SERIES")
    assert "1.9" in wrong.message


def test_too_small_a_scan_is_refused(folder, tmp_path):
    noise = np.random.default_rng(0).random((20, 20, 20), np.float32)
    path = write_nifti(tmp_path / "tiny.nii.gz", noise, np.diag([0.1, 0.1, 0.1, 1]))
    (one,) = register(folder / "fixed.nii.gz", path, tmp_path / "out", **FAST)
    assert (one.verdict, one.code) == ("refused", "E-TOO-SMALL")
