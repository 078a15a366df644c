import ctypes
import subprocess
import sys

import pytest

from monai_attention import cli
from monai_attention.cohort import pages

LARGE = """
import resource
from monai_attention.cohort.pages import keep_pages
if {keep}:
    print(keep_pages())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(50_000_000)
before = faults()
for _ in range(10):
    bytearray(50_000_000)
print(faults() - before)
"""


def run(keep):
    command = [sys.executable, "-c", LARGE.format(keep=keep)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_large_arrays_take_the_pages_of_earlier_ones():
    (plain,), (done, kept) = run(False), run(True)
    assert done == "True"
    assert int(kept) < int(plain) / 10


def test_however_much_is_freed_it_is_kept(monkeypatch):
    """A threshold of 2 GB would be one."""
    told = {}

    class Library:
        def mallopt(self, setting, value):
            return told.setdefault(setting, value) is value

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert pages.keep_pages()
    assert told == {-1: -1, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX


def test_where_the_c_library_is_another_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not pages.keep_pages()


def test_only_a_process_of_its_own_keeps_them(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "keep_pages", lambda: calls.append(1))
    assert cli.main(["bundles", "list"]) == 0
    assert not calls
    monkeypatch.setattr(sys, "argv", ["monai-attention", "bundles", "list"])
    assert cli.main() == 0
    assert calls
