"""The verb `check`: a verdict for every case, whatever happens to the others."""

import json

import numpy as np
import pytest

from monai_attention.io import nifti
from monai_attention.io.check import check, format_table
from monai_attention.io.volume import ReadOptions, Requirements
from tests.io.make_dicom import CANARY, ras_affine, write_series
from tests.io.make_volumes import oblique, ramp, write_nifti

SHAPE = (4, 5, 6)


@pytest.fixture
def cohort(tmp_path):
    """One case of every verdict, and one that only a full read finds out."""
    write_nifti(tmp_path / "good.nii.gz", ramp(*SHAPE))
    write_nifti(tmp_path / "lost.nii.gz", ramp(*SHAPE), codes=(0, 0))
    write_nifti(tmp_path / "vector.nii.gz", ramp(4, 5, 6, 1, 3))
    damaged = write_nifti(tmp_path / "damaged.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE, dtype=np.int16))
    whole = bytearray(damaged.read_bytes())
    whole[-6] ^= 0xFF  # in the checksum, which a look at the header does not reach
    damaged.write_bytes(whole)
    write_series(tmp_path / "series", ramp(*SHAPE), ras_affine((1, 1, 2)), "CT")
    return tmp_path


def verdicts(*args, **options):
    return {one.case_id: (one.verdict, one.code) for one in check(*args, **options)}


def test_every_case_gets_its_verdict_and_none_stops_the_rest(cohort):
    expected = {
        "damaged": ("ok", ""),
        "good": ("ok", ""),
        "lost": ("flagged", "F-NO-ORIENTATION"),
        "series": ("ok", ""),
        "vector": ("refused", "E-DIMENSIONS"),
    }
    assert verdicts([cohort]) == expected
    assert verdicts([cohort], headers_only=False) == {**expected, "damaged": ("refused", "E-CORRUPT")}


def test_a_bundles_requirements_and_the_users_options_count(cohort):
    got = verdicts([cohort], requirements=Requirements(modalities=("MR",)), options=ReadOptions(max_memory=10_000))
    assert got["series"] == ("refused", "E-MODALITY")
    assert got["lost"] == ("refused", "E-NO-ORIENTATION")
    assert verdicts([cohort / "good.nii.gz"], options=ReadOptions(max_memory=10))["good"] == ("refused", "E-SIZE")


def test_headers_are_enough_unless_asked_for_more(cohort, monkeypatch):
    monkeypatch.setattr(nifti, "read", lambda *_: pytest.fail("voxels were read"))
    check([cohort])


def test_an_unforeseen_error_is_a_verdict_that_quotes_nothing(cohort, monkeypatch):
    def broken(*_):
        raise RuntimeError(CANARY)

    monkeypatch.setattr(nifti, "read_header", broken)
    got = check([cohort])
    assert {one.case_id: one.code for one in got} == {
        **dict.fromkeys(("damaged", "good", "lost", "vector"), "E-INTERNAL"),
        "series": "",
    }
    assert CANARY not in format_table(got)


def test_a_verdict_tells_the_geometry_and_survives_json(cohort):
    (good,) = check([cohort / "good.nii.gz"])
    told = json.loads(json.dumps(good.to_json()))
    assert told["case_id"] == "good"
    assert told["path"] == str(cohort / "good.nii.gz")
    assert told["shape"] == list(SHAPE)
    np.testing.assert_allclose(told["spacing_mm"], (0.8, 1.5, 3.0), atol=1e-5)
    assert told["orientation"] == "RAS"
    (series,) = check([cohort / "series"])
    assert (series.modality, series.orientation, series.shape) == ("CT", "LPS", SHAPE)
    assert CANARY not in json.dumps(series.to_json())


def test_the_table_has_a_line_a_case_and_says_what_to_do(cohort):
    got = check([cohort])
    table = format_table(got).splitlines()
    assert table[0].split() == ["case", "verdict", "voxels", "spacing", "mm", "axes", "modality"]
    starts = [line for line in table[1:] if not line.startswith(" ")]
    assert [line.split()[:2] for line in starts] == [[one.case_id, one.verdict] for one in got]
    refused = next(one for one in got if one.verdict == "refused")
    assert any(refused.message in line for line in table)
    assert f"    -> {refused.remedy}" in table


def test_the_file_at_fault_is_named(tmp_path):
    write_nifti(tmp_path / "image.nii", ramp(*SHAPE), oblique(), datatype=128)
    (verdict,) = check([tmp_path])
    assert (verdict.path, verdict.code) == (tmp_path / "image.nii", "E-NOT-SCALAR")
