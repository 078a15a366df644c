"""No partial file under a final name, whatever happens; and label maps that keep their place in the world."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attention.errors import Refusal
from monai_attention.io import write
from monai_attention.io.geometry import corners, is_sheared, spacing
from monai_attention.io.process import Process
from monai_attention.io.write import (
    check_writable,
    replacing,
    sweep_leftovers,
    write_json,
    write_labels,
    write_nifti,
    write_text,
)


def half_written(path, error):
    path.write_bytes(bytes(2_500_000))
    raise error


SLOW_WRITER = """
import sys, time
from monai_attention.io.write import replacing
with replacing(sys.argv[1]) as temporary, temporary.open("wb") as file:
    for _ in range(10_000):
        file.write(b"x" * 100_000)
        file.flush()
        time.sleep(0.01)
"""


@pytest.mark.parametrize("previous", [None, b"the old result"])
def test_row_49_killed_while_writing_leaves_the_final_name_as_it_was(tmp_path, previous):
    final = tmp_path / "labels.nii.gz"
    if previous is not None:
        final.write_bytes(previous)
    writer = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(final)])
    deadline = time.monotonic() + 60
    while not any(leftover.stat().st_size > 300_000 for leftover in tmp_path.glob(".tmp-*")):
        assert time.monotonic() < deadline
        assert writer.poll() is None
        time.sleep(0.01)
    assert sweep_leftovers(tmp_path) == []  # its writer still lives
    writer.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    leftover = next(tmp_path.glob(".tmp-*"))
    assert sweep_leftovers(tmp_path) == [leftover]  # dead, though its parent has not asked for the exit status yet
    writer.wait()
    assert (final.read_bytes() if final.exists() else None) == previous
    assert [p.name for p in tmp_path.iterdir()] == ([final.name] if previous else [])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_row_51_disk_full_is_refused_with_figures_and_the_old_file_stays(tmp_path, code):
    final = tmp_path / "labels.nii.gz"
    final.write_bytes(b"old")
    with pytest.raises(Refusal) as caught, replacing(final) as temporary:
        half_written(temporary, OSError(code, os.strerror(code)))
    assert caught.value.code == "E-DISK-FULL"
    assert "2.5 MB" in caught.value.message
    assert "free" in caught.value.message
    assert caught.value.remedy
    assert [p.name for p in tmp_path.iterdir()] == [final.name]
    assert final.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_row_51_the_system_s_own_disk_full_error_is_recognised(tmp_path):
    full = Path("/dev/full")
    with pytest.raises(Refusal, match="E-DISK-FULL"), replacing(tmp_path / "x.json"):
        full.write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_row_52_output_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(Refusal, match="E-READ-ONLY"):
        check_writable(file / "output")

    def refuse(path, *_args, **_kwargs):  # tests may run as root, whom no permission stops
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(write.Path, "write_bytes", refuse)
        with pytest.raises(Refusal, match="E-READ-ONLY"):
            check_writable(tmp_path / "new")
        with pytest.raises(Refusal, match="E-READ-ONLY"):
            write_text(tmp_path / "page.html", "")
    check_writable(tmp_path / "new" / "nested")
    assert list((tmp_path / "new" / "nested").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_any_exception_removes_the_temporary_and_passes_on(tmp_path, error):
    final = tmp_path / "a.json"
    write_json(final, {"kept": "ä"})
    with pytest.raises(error), replacing(final) as temporary:
        half_written(temporary, error())
    assert (temporary.parent, temporary.suffix) == (final.parent, ".json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(final.read_text(encoding="utf-8")) == {"kept": "ä"}


def test_an_error_about_another_file_is_not_mistaken_for_the_output_s(tmp_path):
    with pytest.raises(PermissionError), replacing(tmp_path / "a.json"):
        raise PermissionError(errno.EACCES, "denied", "/some/input.nii.gz")


def test_the_longest_file_name_still_gets_a_temporary(tmp_path):
    write_text(tmp_path / ("n" * 250 + ".json"), "{}")


def test_sweeping_spares_the_living_other_machines_and_strangers_files(tmp_path):
    me = Process.current()
    dead = tmp_path / f".tmp-{me.machine}-{me.pid}-{int(me.started) + 1}-00000000.nii.gz"  # my id, recycled
    living = tmp_path / f".tmp-{me.machine}-{me.pid}-{me.started}-00000000.nii.gz"
    elsewhere = tmp_path / ".tmp-000000000000-1-1-00000000.nii.gz"
    elsewhere_old = tmp_path / ".tmp-000000000000-2-1-00000000"
    stranger = tmp_path / ".tmp-notes"
    for path in (dead, living, elsewhere, elsewhere_old, stranger):
        path.write_bytes(b"")
    os.utime(elsewhere_old, (0, 0))
    assert set(sweep_leftovers(tmp_path)) == {dead, elsewhere_old}
    assert set(tmp_path.iterdir()) == {living, elsewhere, stranger}


def test_json_never_holds_what_other_parsers_reject(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_equal_labels_give_equal_bytes_under_any_name_at_any_time(tmp_path, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 5, (7, 8, 9)).astype(np.uint8)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    write_labels(tmp_path / "a.nii.gz", labels, affine)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_labels(tmp_path / "b.nii.gz", np.asfortranarray(labels), affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    image = nibabel.load(tmp_path / "b.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], affine, atol=1e-6)
    np.testing.assert_allclose(image.get_sform(coded=True)[0], affine, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 3)])
def test_other_readers_find_every_voxel_where_it_was(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_nifti(tmp_path / "image.nii.gz", array, np.eye(4))
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "image.nii.gz").dataobj), array)


def test_labels_of_another_type_or_name_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="uint8"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.int64), np.eye(4))
    with pytest.raises(ValueError, match=r"\.nii\.gz"):
        write_labels(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), np.eye(4))


angle = st.floats(-np.pi, np.pi)
step = st.floats(0.2, 8)


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(angle, angle, st.one_of(angle, st.just(np.pi), st.just(np.pi - 1e-3))),
    steps=st.tuples(step, step, step),
    flip=st.sampled_from([1, -1]),
    shear=st.sampled_from([0.0, 0.2]),
    origin=st.floats(-500, 500),
)
def test_the_written_affine_is_the_given_one_and_the_qform_never_contradicts_it(
    tmp_path_factory, angles, steps, flip, shear, origin
):
    rotation = np.eye(3)
    for axis, theta in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(theta), -np.sin(theta), np.sin(theta), np.cos(theta)
        rotation = rotation @ turn
    sheared = np.eye(3)
    sheared[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = rotation @ sheared @ np.diag([flip * steps[0], *steps[1:]])
    affine[:3, 3] = origin
    labels = np.ones((40, 30, 20), np.uint8)
    path = tmp_path_factory.mktemp("affine") / "labels.nii.gz"
    write_labels(path, labels, affine)
    image = nibabel.load(path)
    tolerance = 1e-3 * spacing(affine).min() + 1e-4  # the header holds 32-bit floats
    expected = corners(affine, labels.shape)
    np.testing.assert_allclose(corners(image.affine, labels.shape), expected, atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), spacing(affine), rtol=1e-5)
    qform, code = image.get_qform(coded=True)
    assert int(image.header["sform_code"]) == 1
    assert code in (0, 1)
    if code:
        np.testing.assert_allclose(corners(qform, labels.shape), expected, atol=tolerance)
    if is_sheared(affine):
        assert code == 0
