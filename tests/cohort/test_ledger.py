"""The ledger of a cohort run: done means done with these inputs, and no case is worked on twice."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import itk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_attention.cohort import ledger
from monai_attention.cohort.ledger import claim, fingerprint, finished_record, is_finished, part, start_over
from monai_attention.errors import Refusal
from monai_attention.io.write import replacing, write_json

WORKER = """
import sys, time
from pathlib import Path
from monai_attention.cohort.ledger import claim, is_finished, start_over
from monai_attention.io.write import write_json
output, go = Path(sys.argv[1]), Path(sys.argv[2])
(go / f"ready-{sys.argv[3]}").touch()
while not (go / "go").exists():
    time.sleep(0.001)
for k in range(20):
    folder = output / f"case{k:02d}"
    with claim(folder) as mine:
        if mine and not is_finished(folder, "f"):
            start_over(folder)
            with (output / "log.txt").open("a") as log:  # short appends are atomic
                log.write(f"{folder.name} {sys.argv[3]}\\n")
            time.sleep(0.01)
            write_json(folder / "run.json", {"fingerprint": "f"})
"""

HOLDER = """
import sys, time
from monai_attention.cohort.ledger import claim
with claim(sys.argv[1]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed_holder(case_dir):
    """A claim whose process was killed; the process stays unreaped until the returned handle is waited for."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(case_dir)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with claim(case_dir) as mine:
        assert not mine  # it lives
    holder.send_signal(signal.SIGKILL)
    wait_for(lambda: ledger._read(case_dir / ledger.CLAIM).is_dead)
    return holder


def test_row_53_two_processes_on_one_folder_do_each_case_exactly_once(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    command = [sys.executable, "-c", WORKER, str(output), str(tmp_path)]
    workers = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    (tmp_path / "go").touch()
    assert [worker.wait(60) for worker in workers] == [0, 0]
    lines = [line.split() for line in (output / "log.txt").read_text().splitlines()]
    assert Counter(case for case, _ in lines) == {f"case{k:02d}": 1 for k in range(20)}
    assert {worker for _, worker in lines} == {"one", "two"}
    assert all([p.name for p in output.glob(f"case{k:02d}/*")] == ["run.json"] for k in range(20))


def test_row_53_the_claim_of_a_killed_process_is_retaken_by_exactly_one_of_many(tmp_path):
    holder = killed_holder(tmp_path)
    start, release, answers = threading.Barrier(8), threading.Event(), []

    def contend():
        start.wait()
        with claim(tmp_path) as mine:
            answers.append(mine)
            release.wait(30)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) == 8)
    release.set()
    for thread in threads:
        thread.join()
    holder.wait()
    assert sorted(answers) == [False] * 7 + [True]
    assert list(tmp_path.iterdir()) == []


def test_row_53_who_comes_too_late_to_a_retake_leaves_the_new_claim_alone(tmp_path, monkeypatch):
    holder = killed_holder(tmp_path)
    create = ledger._create

    def while_another_retakes(path, owner):
        if path.name != ledger.CLAIM:
            (tmp_path / ledger.CLAIM).unlink()
            create(tmp_path / ledger.CLAIM, replace(owner, token="the other's"))
        return create(path, owner)

    monkeypatch.setattr(ledger, "_create", while_another_retakes)
    with claim(tmp_path) as mine:
        assert not mine
    holder.wait()
    assert ledger._read(tmp_path / ledger.CLAIM).token == "the other's"
    assert [p.name for p in tmp_path.iterdir()] == [ledger.CLAIM]


def test_row_53_a_retake_that_was_itself_killed_does_not_block_the_case(tmp_path):
    holder = killed_holder(tmp_path)
    dead = ledger._read(tmp_path / ledger.CLAIM)
    (tmp_path / f"{ledger.CLAIM}-{dead.token}").write_bytes((tmp_path / ledger.CLAIM).read_bytes())
    with claim(tmp_path) as mine:
        assert mine
    holder.wait()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"machine": "elsewhere", "pid": 1, "started": "1", "token": "a"}'])
def test_row_53_a_claim_we_cannot_judge_is_respected_until_its_heartbeat_stops(tmp_path, content):
    (tmp_path / ledger.CLAIM).write_text(content)
    with claim(tmp_path) as mine:
        assert not mine
    old = time.time() - ledger.STALE_SECONDS - 1
    os.utime(tmp_path / ledger.CLAIM, (old, old))
    with claim(tmp_path) as mine:
        assert mine


def test_a_claim_of_this_machine_ends_with_its_heartbeat_where_processes_cannot_be_told_apart(tmp_path, monkeypatch):
    """As on Windows: nobody knows whether its process is dead."""
    with claim(tmp_path):
        content = (tmp_path / ledger.CLAIM).read_bytes()
    (tmp_path / ledger.CLAIM).write_bytes(content)
    old = time.time() - ledger.STALE_SECONDS - 1
    os.utime(tmp_path / ledger.CLAIM, (old, old))
    with claim(tmp_path) as mine:
        assert not mine  # it is ours, and we live
    monkeypatch.setattr(ledger._Owner, "is_told_apart", False)
    with claim(tmp_path) as mine:
        assert mine


def test_a_claim_is_kept_fresh_while_its_block_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / ledger.CLAIM
    with claim(tmp_path):
        os.utime(path, (0, 0))
        wait_for(lambda: path.stat().st_mtime > 0)


def test_a_claim_ends_with_its_block_even_by_an_error_but_never_ends_another_s(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path):
        raise RuntimeError
    with claim(tmp_path) as mine:
        assert mine
        (tmp_path / ledger.CLAIM).write_text("retaken by another machine while we slept")
    assert (tmp_path / ledger.CLAIM).exists()


def test_row_51_disk_full_leaves_the_ledger_intact(tmp_path, monkeypatch):
    def disk_full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    done, failing = tmp_path / "done", tmp_path / "failing"
    with claim(done):
        write_json(done / "run.json", {"fingerprint": "f"})
    with pytest.raises(Refusal, match="E-DISK-FULL"), claim(failing), replacing(failing / "run.json") as temporary:
        disk_full(temporary.write_bytes(b'{"fingerprint": "f"'))
    assert is_finished(done, "f")
    assert not is_finished(failing, "f")
    assert list(failing.iterdir()) == []
    monkeypatch.setattr(ledger.os, "open", disk_full)
    with pytest.raises(Refusal, match="E-DISK-FULL"), claim(tmp_path / "next"):
        pass


def test_finished_means_this_fingerprint_a_whole_record_and_every_output(tmp_path):
    record = {"fingerprint": "f", "outputs": {"labels": "labels.nii.gz"}, "verdict": "ok"}
    assert not is_finished(tmp_path, "f")
    write_json(tmp_path / "run.json", record)
    assert not is_finished(tmp_path, "f")  # the labels were deleted
    (tmp_path / "labels.nii.gz").touch()
    assert finished_record(tmp_path, "f") == record
    assert not is_finished(tmp_path, "other weights")
    (tmp_path / "run.json").write_text('{"fingerprint": "f"')
    assert not is_finished(tmp_path, "f")
    start_over(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["labels.nii.gz"]


@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr"])
def test_the_fingerprint_follows_voxels_beside_their_header(tmp_path, name):
    image = itk.image_from_array(np.zeros((4, 5, 6), np.uint8))
    itk.imwrite(image, str(tmp_path / name))
    first = fingerprint([tmp_path / name], {})
    assert fingerprint([tmp_path / name], {}) == first
    (voxels,) = (path for path in tmp_path.iterdir() if path.name != name)
    os.utime(voxels, (1, 1))
    assert fingerprint([tmp_path / name], {}) != first


def test_the_fingerprint_follows_inputs_and_parameters_and_nothing_else(tmp_path, monkeypatch):
    scan, folder = tmp_path / "scan.nii", tmp_path / "series" / "nested"
    folder.mkdir(parents=True)
    scan.write_bytes(b"1")
    (folder / "1.dcm").write_bytes(b"1")
    (folder / "loop").symlink_to(tmp_path)
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    parameters = {"bundle": "b", "overlap": 0.5}

    def now(**changes):
        return fingerprint([scan, folder.parent], parameters | changes)

    first = now()
    assert now() == first
    assert fingerprint([scan, folder.parent], dict(reversed(parameters.items()))) == first
    monkeypatch.chdir(tmp_path)
    assert fingerprint(["scan.nii", "series"], parameters) == first
    assert now(overlap=0.25) != first
    seen = {first}
    os.utime(scan, ns=(0, 1))
    seen.add(now())
    scan.write_bytes(b"22")
    os.utime(scan, ns=(0, 1))
    seen.add(now())
    (folder / "2.dcm").write_bytes(b"")
    seen.add(now())
    assert len(seen) == 4
    with pytest.raises(FileNotFoundError):
        fingerprint([tmp_path / "missing"], parameters)
    with pytest.raises(TypeError):
        now(odd=object())


@given(st.lists(st.text(), unique=True), st.integers(1, 7))
def test_every_case_is_in_exactly_one_part_whatever_the_other_cases_are(case_ids, n):
    parts = [part(case_ids, i, n) for i in range(1, n + 1)]
    assert Counter(case for cases in parts for case in cases) == Counter(case_ids)
    for cases, i in zip(parts, range(1, n + 1), strict=True):
        assert cases == [case for case in case_ids if part([case], i, n)]


@pytest.mark.parametrize("i", [0, 4])
def test_a_part_that_does_not_exist_is_an_error_rather_than_an_empty_run(i):
    with pytest.raises(ValueError, match="counts from 1 to 3"):
        part(["a"], i, 3)


def test_the_split_stays_the_same_between_releases():
    assert part([f"case{k}" for k in range(10)], 2, 3) == ["case2", "case5", "case8", "case9"]
