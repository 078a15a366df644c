"""Layouts are recognised by looking, what does not add up is refused by name, and people are told apart."""

import json
import zipfile

import pytest

from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.labelled import LabelledCase, group_in
from tests.finetune import make_dataset as make
from tests.io.make_dicom import CANARY
from tests.refusals import refusal

CLASSES = {1: "liver", 2: "tumour"}


def ids(data):
    return [case.id for case in data.cases]


@pytest.mark.parametrize("names", [("images", "labels"), ("imagesTr", "labelsTr"), ("imgs", "masks"), ("scans", "Seg")])
def test_paired_folders_of_many_names(tmp_path, names):
    make.folders(tmp_path)
    for old, new in zip(("images", "labels"), names, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    data = find_labelled([tmp_path])
    assert (data.layout, data.channels, data.classes) == ("paired folders", ("image",), None)
    image, label = (tmp_path / names[0] / "a.nii.gz", tmp_path / names[1] / "a_seg.nii.gz")
    assert data.cases[0] == LabelledCase("a", (image,), label, "a")
    assert data.cases == find_labelled([tmp_path / names[0], tmp_path / names[1]]).cases


def test_two_folders_anywhere_and_files_in_folders_of_their_own(tmp_path):
    for name in ("x/patient01/t1", "x/patient02/t1"):
        make.put(tmp_path / f"{name}.nii.gz", make.image())
        make.put(tmp_path / f"{name.replace('x/', 'y/')}_mask.nii.gz", make.labels())
    data = find_labelled([tmp_path / "x", tmp_path / "y"])
    assert ids(data) == ["patient01__t1", "patient02__t1"]
    assert [case.group for case in data.cases] == ["patient01", "patient02"]


def test_several_folders_are_splits(tmp_path):
    make.folders(make.folders(tmp_path, ("a", "b"), split="Tr"), ("v",), split="Val", first=2)
    make.put(tmp_path / "imagesTs" / "t.nii.gz", make.image())
    found = {case.id: case.split for case in find_labelled([tmp_path]).cases}
    assert found == {"a": "train", "b": "train", "v": "validation"}


def test_numbered_channels_and_a_number_that_is_part_of_the_name(tmp_path):
    for number in (0, 1):
        make.put(tmp_path / "images" / f"a_{number:04d}.nii.gz", make.image(number))
    make.put(tmp_path / "labels" / "a.nii.gz", make.labels())
    data = find_labelled([tmp_path])
    assert data.channels == ("channel_0", "channel_1")
    assert [path.name for path in data.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    years = make.folders(tmp_path / "years", ("scan_2019", "scan_2020"))
    assert ids(find_labelled([years])) == ["scan_2019", "scan_2020"]


def test_msd(tmp_path):
    data = find_labelled([make.msd(tmp_path)])
    assert (data.layout, data.classes, data.channels, ids(data)) == ("MSD", CLASSES, ("CT",), ["a", "b"])
    assert data == find_labelled([tmp_path / "dataset.json"])
    described = json.loads((tmp_path / "dataset.json").read_text())
    make.describe(tmp_path, described | {"validation": [described["training"].pop()]})
    assert [case.split for case in find_labelled([tmp_path]).cases] == ["train", "validation"]


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet_of_both_versions(tmp_path, version):
    make.nnunet(tmp_path)
    if version == 1:  # lists images without their channel's number, so none of them is there
        items = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
        labels = {"0": "background", "1": "liver", "2": "tumour"}
        make.describe(tmp_path, {"modality": {"0": "T1", "1": "T2"}, "labels": labels, "training": items})
    data = find_labelled([tmp_path])
    assert (data.layout, data.classes, data.channels, ids(data)) == ("nnU-Net", CLASSES, ("T1", "T2"), ["a", "b"])
    assert data.cases[1].images[1].name == "b_0001.nii.gz"


def test_bids(tmp_path):
    data = find_labelled([make.bids(tmp_path)])
    assert (data.layout, data.classes, data.channels) == ("BIDS", CLASSES, ("T1w",))
    assert {case.id: case.group for case in data.cases} == {
        "sub-01": "sub-01",
        "sub-02_ses-1": "sub-02",
        "sub-02_ses-2": "sub-02",
    }
    assert data.cases[1].label.name == "sub-02_ses-1_desc-manual_dseg.nii.gz"


def test_a_table_names_channels_people_and_splits(tmp_path):
    row = {"image_T1": "t1.nii", "image_T2": "t2.nii", "label": "l.nii", "id": "one", "group": "p1", "split": "train"}
    data = find_labelled([make.table(tmp_path, [row])])
    (case,) = data.cases
    assert (data.layout, data.channels) == ("CSV", ("T1", "T2"))
    assert case == LabelledCase("one", (tmp_path / "t1.nii", tmp_path / "t2.nii"), tmp_path / "l.nii", "p1", "train")


def test_dicom_folders_are_grouped_by_patient_whose_number_is_nowhere(tmp_path, caplog):
    caplog.set_level("DEBUG")
    for seed, (name, patient) in enumerate((("x", CANARY), ("y", CANARY), ("z", "another"), ("w", ""))):
        make.dicom(tmp_path / "images" / name, seed, PatientID=patient)
        make.put(tmp_path / "labels" / f"{name}.nii.gz", make.labels(), make.DICOM_AFFINE)
    data = find_labelled([tmp_path])
    groups = {case.id: case.group for case in data.cases}
    assert groups["x"] == groups["y"] != groups["z"]
    assert groups["w"] == "w"
    x = tmp_path / "images/x"
    (x / "A_DIRECTORY").write_bytes(bytes(128) + b"DICM")  # the first, and it names no patient
    with zipfile.ZipFile(tmp_path / "images/v.zip", "w") as archive:
        for path in sorted(x.iterdir()):
            archive.write(path, path.name)
    make.put(tmp_path / "labels/v.nii.gz", make.labels(), make.DICOM_AFFINE)
    data = find_labelled([tmp_path])
    assert {case.id: case.group for case in data.cases} == groups | {"v": groups["x"]}
    assert CANARY not in repr(data)
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("patient017_frame01", "patient017"),
        ("Patient_3", "patient_3"),
        ("site1__sub-01_T1w", "sub-01"),
        ("sub-NDAR7/t1", "sub-ndar7"),
        ("ACDC_patient001_frame01", "acdc_patient001"),
        ("siteB_patient001", "siteb_patient001"),
        ("x/study1_sub-02_ses-1", "study1_sub-02"),
        ("0012_t2_space_pat2", None),
        ("scan1_sub-sampled", None),
        ("case_12", None),
        ("subtotal_3", None),
        ("x/sub_1", None),
        ("outpatient1", None),
        ("patient", None),
    ],
)
def test_only_words_that_mean_a_person_group(name, group):
    assert group_in(name) == group


def _two_layouts(root):
    make.folders(make.bids(root))


def _unlabelled(root):
    for number in range(7):
        make.put(make.folders(root) / "images" / f"extra{number}.nii.gz", make.image())


def _orphan(root):
    make.put(make.folders(root) / "labels" / "extra.nii.gz", make.labels())


def _two_labels(root):
    make.put(make.folders(root) / "labels" / "a_mask.nii.gz", make.labels())


def _two_images(root):
    make.put(make.folders(root) / "images" / "a_image.nii.gz", make.image())


def _two_label_folders(root):
    make.put(make.folders(root) / "masks" / "a.nii.gz", make.labels())


def _channel_missing(root):
    (make.nnunet(root) / "imagesTr" / "b_0001.nii.gz").unlink()


def _no_dseg(root):
    make.put(make.bids(root) / "sub-03" / "anat" / "sub-03_T1w.nii.gz", make.image())


def _two_dseg(root):
    make.put(make.bids(root) / "derivatives" / "net" / "sub-01_desc-net_dseg.nii.gz", make.labels())


def _contradicting_names(root):
    (make.bids(root) / "derivatives" / "a_dseg.tsv").write_text("index\tname\n1\tspleen\n")


def _two_spellings(root):
    (make.bids(root) / "derivatives/manual/dseg.tsv").write_text("index\tname\n1\tLiver-cyst\n2\tliver cyst\n")


SPELLED_TWICE = "the classes 1 and 3 are called Left Kidney and left_kidney"


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda root: root.mkdir(exist_ok=True), "E-LAYOUT", "no layout"),
        (_two_layouts, "E-LAYOUT", "BIDS, paired folders"),
        (_two_label_folders, "E-LAYOUT", "labels, masks"),
        (_unlabelled, "E-UNPAIRED", "extra4.nii.gz and 2 more"),
        (_orphan, "E-UNPAIRED", "extra.nii.gz"),
        (_two_labels, "E-UNPAIRED", "a_mask.nii.gz"),
        (_two_images, "E-UNPAIRED", "a_image.nii.gz"),
        (_channel_missing, "E-CHANNEL-MISSING", "in b"),
        (_no_dseg, "E-UNPAIRED", "sub-03"),
        (_two_dseg, "E-UNPAIRED", "sub-01_desc-net_dseg.nii.gz"),
        (_contradicting_names, "E-DATASET", "1"),
        (lambda root: make.describe(make.nnunet(root), [1]), "E-DATASET", "object"),
        (lambda root: make.msd(root, labels={"liver": [1, 2], "tumour": 2}), "E-DATASET", "regions"),
        (lambda root: make.msd(root, labels={"liver": 1, "ignore": 2}), "E-DATASET", "ignored"),
        (lambda root: make.msd(root, labels={"liver": 300}), "E-DATASET", "300"),
        (lambda root: make.msd(root, labels={"1": "liver", "2": "liver"}), "E-DATASET", "liver"),
        (lambda root: make.msd(root, labels={"Left Kidney": 1, "a": 2, "left_kidney": 3}), "E-DATASET", SPELLED_TWICE),
        (lambda root: make.msd(root, labels={"void": 0, "Background ": 4}), "E-DATASET", "0 and 4"),
        (_two_spellings, "E-DATASET", "Liver-cyst and liver cyst"),
        (lambda root: make.msd(root, labels={"liver": "one"}), "E-DATASET", "whole numbers"),
        (lambda root: make.msd(root, modality={"1": "CT"}), "E-DATASET", "modality"),
        (lambda root: make.msd(root, training=5), "E-DATASET", "training"),
        (lambda root: make.msd(root, training=["a.nii.gz"]), "E-DATASET", "names no image"),
        (lambda root: make.msd(root, training=[{"image": "imagesTr/a.nii.gz"}]), "E-UNPAIRED", "a"),
    ],
)
def test_what_does_not_add_up_is_refused_by_name(tmp_path, spoil, code, said):
    spoil(tmp_path)
    refused = refusal(find_labelled, [tmp_path])
    assert refused.code == code
    assert said in refused.message
    assert refused.remedy
    assert refused.path is not None


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"image": "a.nii"}, "E-CSV"),
        ({"image": "a.nii", "label": "l.nii", "goup": "p"}, "E-CSV"),
        ({"image": "a.nii", "image_T2": "b.nii", "label": "l.nii"}, "E-CSV"),
        ({"image": "a.nii", "label": ""}, "E-UNPAIRED"),
        ({"image": "", "label": "l.nii"}, "E-CSV"),
        ({"image_T1": "a.nii", "image_T2": "", "label": "l.nii"}, "E-CHANNEL-MISSING"),
        ({"image": "a.nii", "label": "l.nii", "split": "dev"}, "E-CSV"),
    ],
)
def test_tables_that_cannot_be_understood_are_refused(tmp_path, row, code):
    assert refusal(find_labelled, [make.table(tmp_path, [row])]).code == code


def test_a_group_of_some_rows_only_is_refused(tmp_path):
    rows = [{"image": f"{n}.nii", "label": f"{n}_labels.nii", "group": group} for n, group in ((1, "p"), (2, ""))]
    assert refusal(find_labelled, [make.table(tmp_path, rows)]).code == "E-CSV"


def test_a_split_of_some_rows_only_is_refused(tmp_path):
    assert refusal(find_labelled, [make.in_splits(tmp_path, ("train", ""))]).code == "E-CSV"


def test_row_36_labelled_cases_of_one_name_are_refused_before_anything_is_read(tmp_path):
    table = make.in_splits(tmp_path / "table", ("train", "train"), id=("One", "one"))
    assert refusal(find_labelled, [table]).code == "E-DUPLICATE-CASE"
    root = make.folders(tmp_path / "folders")
    (root / "images" / "a.nrrd").write_bytes(b"")
    assert refusal(find_labelled, [root]).code == "E-DUPLICATE-CASE"


def test_what_is_not_there_is_refused(tmp_path):
    assert refusal(find_labelled, [tmp_path / "nothing"]).code == "E-NOT-FOUND"
    assert refusal(find_labelled, [make.folders(tmp_path), tmp_path, tmp_path]).code == "E-LAYOUT"
