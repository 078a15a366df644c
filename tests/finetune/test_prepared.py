import contextlib
import json
from collections import Counter

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd, RandFlipd, RandGaussianNoised, Spacingd

from monai_attention.finetune.crops import PreparedCases, PreparedCrops
from monai_attention.finetune.labelled import LabelledCase
from monai_attention.finetune.places import PLACES, classes_in, places_of
from monai_attention.finetune.prepared import CASES, expect_labelled, write_prepared
from tests.io.make_volumes import oblique, write_nifti
from tests.refusals import refusal

PREPROCESSING = Compose(
    [
        Orientationd(keys="image", axcodes="RAS", labels=None),
        Spacingd(keys="image", pixdim=(2.0, 2.0, 2.0), mode="bilinear"),
    ]
)
SIZE = (24, 20, 22)


@pytest.fixture
def cases(tmp_path):
    """Two cases on an oblique grid: bright where labelled 7, brighter where labelled 3; the second has no 3."""
    made = []
    for k in range(2):
        labels = np.zeros(SIZE, np.float32)
        labels[6:14, 6:12, 5:15] = 7
        if not k:
            labels[15:19, 8:14, 8:12] = 3
        image = np.where(labels == 7, 50, np.where(labels == 3, 90, 10)).astype(np.float32)
        files = [
            write_nifti(tmp_path / f"{k}_{kind}.nii", array, oblique())
            for kind, array in (("image", image), ("label", labels))
        ]
        made.append(LabelledCase(f"case{k}", (files[0],), files[1], f"p{k}"))
    return made


def prepared(cases, folder, recipe=1, folds=None):
    folds = {"case0": 0, "case1": 1} if folds is None else folds
    return write_prepared(cases, folder, PREPROCESSING, classes=[3, 7], channels=1, folds=folds, recipe=recipe)


def test_image_and_labels_lie_on_one_grid(cases, tmp_path):
    listed = prepared(cases, tmp_path / "data")
    assert listed == json.loads((tmp_path / "data" / CASES).read_text())
    for entry in listed:
        image, label = (nibabel.load(tmp_path / "data" / entry[kind]) for kind in ("image", "label"))
        assert image.shape == label.shape
        np.testing.assert_allclose(image.affine, label.affine)
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), 2, atol=1e-3)
        values, numbers = np.asarray(image.dataobj), np.asarray(label.dataobj)
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(numbers)) == ({0, 1, 2} if entry["id"] == "case0" else {0, 2})  # 3 is 1, 7 is 2
        assert values[numbers == 2].mean() == pytest.approx(50, abs=4)


def test_what_is_prepared_is_kept_until_its_recipe_or_its_files_change(cases, tmp_path):
    folder = tmp_path / "data"
    prepared(cases, folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix == ".nii"}
    prepared(cases, folder)
    assert times == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix == ".nii"}
    for name in ("case1.label.nii", "case1.places.npz"):
        (folder / name).unlink()
        prepared(cases, folder)
        assert (folder / name).is_file()
    assert (folder / "case0.image.nii").stat().st_mtime_ns == times["case0.image.nii"]
    prepared(cases, folder, recipe=2)
    assert (folder / "case0.image.nii").stat().st_mtime_ns > times["case0.image.nii"]
    assert [entry["id"] for entry in prepared(cases, folder, 2, folds={"case1": 0})] == ["case1"]


def crops(cases, tmp_path, transform=(), **options):
    listed = prepared(cases, tmp_path / "data")
    whole = PreparedCases(tmp_path / "data", listed)
    return PreparedCrops(whole, roi_size=(8, 10, 6), transform=Compose(list(transform)), length=60, **options)


def test_crops_are_the_same_each_time_and_go_on_where_a_training_ended(cases, tmp_path):
    random = [RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=1.0)]
    one, other = crops(cases, tmp_path, random), crops(cases, tmp_path, random)
    first = one[7]
    _ = [other[i] for i in (3, 1)]
    assert torch.equal(other[7]["image"], first["image"])
    assert not torch.equal(one[9]["image"], first["image"])
    resumed = crops(cases, tmp_path, random)
    resumed.first = 5
    assert torch.equal(resumed[2]["image"], first["image"])
    assert not torch.equal(crops(cases, tmp_path, random, seed=1)[7]["image"], first["image"])
    with pytest.raises(IndexError):
        one[60]


def test_every_case_comes_as_often_and_rare_classes_do_not_go_under(cases, tmp_path):
    drawn = crops(cases, tmp_path, labelled=1.0)
    items = [drawn[i] for i in range(60)]
    assert Counter(item["case"] for item in items) == {"case0": 30, "case1": 30}
    middle = Counter(int(item["label"][0, 4, 5, 3]) for item in items if item["case"] == "case0")
    assert set(middle) == {1, 2}
    assert min(middle.values()) >= 8  # class 1 is a fifth of the labelled voxels, and half of the crops
    for item in items:
        assert item["image"].shape == item["label"].shape == (1, 8, 10, 6)
        assert abs(float(item["image"][item["label"] == 2].mean()) - 50) < 4


def test_beyond_the_image_is_background(cases, tmp_path):
    drawn = crops(cases, tmp_path, labelled=0.0)
    drawn.roi_size, drawn.cut = (60, 60, 60), (60, 60, 60)
    item = drawn[0]
    assert item["image"].shape == (1, 60, 60, 60)
    assert not item["label"][0, 0].any()
    lowest = np.asarray(nibabel.load(tmp_path / f"data/{item['case']}.image.nii").dataobj).min()
    assert lowest > 5
    assert set(item["image"][0, 0].unique().tolist()) == {lowest}


def test_nothing_is_read_before_a_crop_is_cut_and_then_of_its_case_alone(cases, tmp_path):
    listed = prepared(cases, tmp_path / "data")
    for name in ("image", "label", "places"):
        (tmp_path / "data" / listed[1][name]).unlink()
    whole = PreparedCases(tmp_path / "data", listed)
    drawn = PreparedCrops(whole, roi_size=(8, 10, 6), transform=Compose([]), length=2)
    found = []
    for i in range(2):
        with contextlib.suppress(FileNotFoundError):
            found.append(drawn[i]["case"])
    assert found == ["case0"]


def test_what_is_beyond_each_channel_is_its_own_lowest_value(cases, tmp_path):
    listed = prepared(cases, tmp_path / "data")
    for entry in listed:
        image = np.asarray(nibabel.load(tmp_path / "data" / entry["image"]).dataobj)
        label = np.asarray(nibabel.load(tmp_path / "data" / entry["label"]).dataobj)
        with np.load(tmp_path / "data" / entry["places"]) as places:
            assert places["lowest"].tolist() == [image.min()]
            assert classes_in(places) == sorted({*np.unique(label)} - {0})
            for value in classes_in(places):
                assert set(label.reshape(-1)[places[str(value)]]) == {value}


def test_places_are_of_every_class_that_is_there():
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[2, 3, 4], labels[5, 6] = 4, 2
    found = places_of(labels)
    assert np.unravel_index(found[4], labels.shape) == ([2], [3], [4])
    assert len(found[2]) == 8
    assert sorted(found) == [2, 4]
    assert places_of(labels * 0) == {}


def test_places_of_a_large_class_are_few_and_everywhere():
    labels = np.zeros((40, PLACES, 12), np.uint8)
    labels[:, :, 1:11] = 3  # as many rows as make every row's first voxel the one to be taken, if places were regular
    places = places_of(labels)[3]
    assert len(places) == len(set(places)) == PLACES
    x, y, z = np.unravel_index(places, labels.shape)
    assert set(x) == set(range(40))
    assert set(z) == set(range(1, 11))
    assert np.ptp(y) > 0.9 * PLACES
    assert np.array_equal(places, places_of(labels)[3])


def test_row_35_a_fold_without_labels_is_refused_on_either_side(cases, tmp_path):
    data = tmp_path / "data"
    write_nifti(cases[1].label, np.zeros(SIZE, np.float32), oblique())
    listed = prepared(cases, data)
    expect_labelled([listed[0], listed[1] | {"fold": 0}, listed[0] | {"fold": 1}], data, 0, alone=True)
    for fold, told in ((1, "held out with fold 1: case1"), (0, "trained on with fold 0: case1")):
        refused = refusal(expect_labelled, listed, data, fold, alone=True)
        assert refused.code == "E-FOLD"
        assert told in refused.message
    expect_labelled(listed, data, 1, alone=False)  # others judge; it is told as empty in the scores
