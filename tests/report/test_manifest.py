"""run.json and volumes.csv: stable keys, plain values, and nothing that was not asked for."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from monai_attention.report.manifest import SCHEMA_VERSION, describe_grid, versions, write_record
from monai_attention.report.tables import measure, write_volumes

MINIMAL = {"case_id": "a", "verdict": "ok"}


def test_the_record_is_plain_json_in_a_stable_order(tmp_path):
    record = {
        "fingerprint": "f",
        "volumes": measure(np.ones((2, 2, 2), np.uint8), np.eye(4), {0: "background", 1: "liver"}),
        "geometry": describe_grid((2, 3, 4), np.diag([-1.0, -2.0, 3.0, 1.0])),
        "seconds": {"network": np.float32(0.5)},
        "parameters": {"roi_size": np.array([96, 96, 96]), "trust": False},
        "notes": [{"kind": "flag", "code": "F-SPACING", "message": "ä"}],
        "verdict": "flagged",
        "case_id": "\udce9",  # a file name that is not UTF-8
    }
    write_record(tmp_path / "run.json", record)
    read = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert list(read) == [
        *("schema_version", "case_id", "verdict", "notes", "geometry", "volumes", "seconds", "parameters"),
        *("fingerprint", "versions"),
    ]
    assert read["case_id"] == "\udce9"
    assert read["schema_version"] == SCHEMA_VERSION
    assert read["geometry"] == {"shape": [2, 3, 4], "spacing_mm": [1.0, 2.0, 3.0], "orientation": "LPS"}
    assert read["volumes"] == {"liver": {"label": 1, "voxels": 8, "ml": 0.008}}
    assert read["parameters"] == {"roi_size": [96, 96, 96], "trust": False}
    assert read["versions"] == versions()
    assert "." in read["versions"]["torch"]


@pytest.mark.parametrize(
    "record",
    [
        MINIMAL | {"PatientName": "DOE^JANE"},
        MINIMAL | {"geometry": {"shape": [1], "PatientID": "1"}},
        MINIMAL | {"bundle": {"PatientID": "1"}},
        MINIMAL | {"notes": [{"kind": "info", "code": "I", "message": "m", "PatientID": "1"}]},
        MINIMAL | {"volumes": {"liver": {"label": 1, "voxels": 1, "ml": 1.0, "PatientID": "1"}}},
        {"case_id": "a", "verdict": "fine"},
        {"verdict": "ok"},
        MINIMAL | {"seconds": {"read": float("nan")}},
    ],
)
def test_row_60_a_record_with_anything_undocumented_is_not_written(tmp_path, record):
    with pytest.raises(ValueError, match=r"may only hold|verdict|case_id|JSON"):
        write_record(tmp_path / "run.json", record)
    assert list(tmp_path.iterdir()) == []


def test_volumes_count_true_voxel_sizes_even_when_sheared():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:5] = 2
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    affine[0, 2] = 1.5  # shear leaves the volume of a voxel as it is
    volumes = measure(labels, affine, {2: "spleen", 1: "liver", 0: "background"})
    assert list(volumes) == ["liver", "spleen"]
    assert volumes["liver"] == {"label": 1, "voxels": 0, "ml": 0.0}
    assert volumes["spleen"] == {"label": 2, "voxels": 500, "ml": 12.0}


def test_the_table_has_a_row_per_case_and_class(tmp_path):
    volumes = {'left, "upper" lobe': {"label": 1, "voxels": 8, "ml": 0.008}}
    write_volumes(tmp_path / "volumes.csv", [MINIMAL | {"volumes": volumes}, {"case_id": "b", "verdict": "refused"}])
    with (tmp_path / "volumes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"case_id": "a", "class": 'left, "upper" lobe', "label": "1", "voxels": "8", "ml": "0.008"}]


def test_writing_reports_imports_neither_torch_nor_monai():
    modules = "page, preview, tables, manifest"
    code = f"import sys; from monai_attention.report import {modules}; manifest.versions(); "
    code += "from monai_attention.cohort import ledger; print({'torch', 'monai'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
