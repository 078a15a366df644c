"""The page over a training set: whole in one file, with a picture of every case, and nothing of the patient."""

import re

import pytest

from monai_attention.finetune.dataset import find_labelled
from monai_attention.finetune.preflight import preflight
from monai_attention.report.colours import colour
from monai_attention.report.training_data import write_training_data
from tests.finetune import make_dataset as make
from tests.io.make_dicom import CANARY


@pytest.fixture
def page(tmp_path):
    """From a folder to its page, with the preflight."""

    def made(root):
        found = preflight(find_labelled([root]), pictures=True)
        write_training_data(tmp_path / "page.html", found.to_json(), {one.case.id: one.picture for one in found.cases})
        return found, (tmp_path / "page.html").read_text(encoding="utf-8")

    return made


def test_the_page_shows_every_case_and_needs_no_other_file(tmp_path, page):
    root = make.msd(tmp_path / "data", ("a", "b", "c"), labels={"liver": 1, "tumour": 2, "cyst_3": 3})
    make.put(root / "labelsTr" / "c.nii.gz", make.labels()[:-1])
    _, text = page(root)
    assert text.count('src="data:image/jpeg;base64,') == 2
    assert re.findall(r'<div class="id">(.+?)</div>', text) == ["c", "a", "b"]  # what needs attention first
    bare = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?:|href=|<script|url\(|@import", bare)
    red, green, blue = colour(1)
    for said in (
        "<dt>layout</dt><dd>MSD</dd>",
        f'<td>1</td><td><span class="swatch" style="background: rgb({red} {green} {blue})"></span>liver</td>',
        "in 2 of 2 cases, 0.1 to 0.1 mL, median 0.1 mL",
        "cyst_3</td><td>in 0 of 2 cases</td>",
        "<dt>F-CLASS-ABSENT</dt>",
        "E-GRID",
        "<dt>foreground</dt>",
        "<b>2</b>ok",
    ):
        assert said in bare, said


def test_row_60_nothing_of_the_patient_is_on_the_page(tmp_path, page):
    make.dicom(tmp_path / "data" / "images" / "one")
    make.put(tmp_path / "data" / "labels" / "one.nii.gz", make.labels(), make.DICOM_AFFINE)
    found, text = page(tmp_path / "data")
    (one,) = found.cases
    assert one.picture
    assert CANARY not in text
    assert "19010203" not in text
    assert one.case.group not in text
    assert CANARY.encode() not in one.picture
