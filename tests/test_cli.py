"""The command: its helps, its exit codes, that it passes on what was typed, and that it needs no network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monai_attention import DEFAULT_BUNDLE, bundle_verify, bundles, cli
from monai_attention.errors import Refusal
from monai_attention.inference import segment as segmenting
from monai_attention.io.volume import ReadOptions
from tests.finetune import make_dataset
from tests.io.make_volumes import ramp, write_nifti

HELPS = (
    *([], ["segment"], ["check"], ["finetune"], ["evaluate"], ["demo"]),
    *(["register"], ["warp"], ["invert"], ["jacobian"]),
    *(["bundles"], ["bundles", "list"], ["bundles", "info"], ["bundles", "verify"]),
)
ASK_FOR_HELP = """
import contextlib, io, json, sys
from monai_attention.cli import main
texts = []
for verb in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    texts.append(text.getvalue())
print(json.dumps([texts, sorted(sys.modules)]))
"""
PROMISE = "no network access unless asked"
RUN_WITHOUT_NETWORK = """
import sys, traceback
_, promise, *arguments = sys.argv
asking = ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")
def listen(event, args):
    if event.startswith("socket.") and event.removeprefix("socket.") in asking:
        print(promise, event, args, file=sys.__stderr__)  # seen even if somebody swallows the error
        traceback.print_stack(file=sys.__stderr__)
        raise AssertionError(promise)
sys.addaudithook(listen)
from monai_attention.cli import main
sys.exit(main(arguments))
"""
ORIGINAL = segmenting.segment


def result(verdict, **more):
    return segmenting.CaseResult("t1", verdict, **more)


@pytest.fixture
def image(tmp_path):
    return write_nifti(tmp_path / "t1.nii.gz", ramp(9, 9, 9))


@pytest.fixture
def broken(tmp_path, image):
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(image.read_bytes()[:-40])
    return path


@pytest.fixture
def calls(monkeypatch):
    """Calls of `segment`, which is not run; `calls.results` is what it returns."""

    class Calls(list):
        results = (result("ok", volumes_ml={"brain-stem": 25.25}),)

    calls = Calls()

    def record(*args, **options):
        calls.append((args, options))
        return calls.results

    monkeypatch.setattr(segmenting, "segment", record)
    return calls


def test_every_help_shows_an_example_and_imports_nothing_heavy():
    asked = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, json.dumps(HELPS)], capture_output=True, text=True, check=True
    )
    texts, modules = json.loads(asked.stdout)
    for verb, text in zip(HELPS, texts, strict=True):
        *_, example = text.strip().splitlines()
        assert example.startswith("example: monai-attention " + " ".join(verb)), verb
    assert not {"torch", "monai", "numpy", "scipy", "nibabel", "pydicom", "itk", "PIL"} & set(modules)


@pytest.mark.parametrize("verb", HELPS)
def test_examples_are_accepted(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([*verb, "--help"])
    _, _, *example = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert callable(cli._parser().parse_args(example).verb)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["segment", "t1.nii.gz"],
        ["segment", "-o", "out"],
        ["segment", "t1.nii.gz", "-o", "out", "--format", "png"],
        ["segment", "t1.nii.gz", "-o", "out", "--part", "3/2"],
        ["segment", "t1.nii.gz", "-o", "out", "--part", "0/2"],
        ["segment", "t1.nii.gz", "-o", "out", "--part", "half"],
        ["check", "t1.nii.gz", "--max-memory", "lots"],
        ["check", "t1.nii.gz", "--max-memory", "-6GB"],
        ["check", "t1.nii.gz", "--affine", "both"],
        ["check", "data", "--labels", "--bundle", "mine"],
        ["register", "a.nii", "b.nii", "-o", "out", "--max-memory", "lots"],
        ["jacobian", "field.nii", "-o", "out.nii.gz", "--volume", "1"],
        ["finetune", "data", "-o", "out", "--time", "soon"],
        ["finetune", "data", "-o", "out", "--time", "1h", "--epochs", "3"],
        ["evaluate", "mine", "-o", "out"],
        ["evaluate", "mine", "data", "-o", "out", "--map", "liver"],
        ["evaluate", "mine", "data", "-o", "out", "--split", "all"],
        ["bundles"],
    ],
)
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: monai-attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["segment", "{image}", "-o", "{out}", "--bundle", "no_such"], "E-BUNDLE-NOT-FOUND"),
        (["segment", "{out}/nothing.nii", "-o", "{out}"], "E-NOT-FOUND"),
        (["segment", "{image}", "-o", "{out}", "--set", "overlap"], "E-OVERRIDE"),
        (["check", "{image}", "--bundle", "no_such"], "E-BUNDLE-NOT-FOUND"),
        (["bundles", "info", "no_such"], "E-BUNDLE-NOT-FOUND"),
        (["bundles", "verify", "no_such"], "E-BUNDLE-NOT-FOUND"),
    ],
)
def test_what_cannot_be_started_ends_with_2_and_its_code(arguments, code, image, tmp_path, capsys):
    assert cli.main([one.format(image=image, out=tmp_path / "out") for one in arguments]) == 2
    printed = capsys.readouterr()
    assert code in printed.err
    assert not printed.out


def test_check_prints_a_verdict_a_case_and_ends_with_1_if_one_is_refused(image, broken, capsys):
    assert cli.main(["check", str(image)]) == 0
    assert "t1" in capsys.readouterr().out
    assert cli.main(["check", str(image), str(broken), "--full"]) == 1
    table = capsys.readouterr().out
    assert "E-TRUNCATED" in table
    assert str(broken) in table


def test_check_prints_json(image, broken, capsys):
    assert cli.main(["check", str(image), str(broken), "--full", "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["case_id"], good["verdict"], good["shape"]) == ("t1", "ok", [9, 9, 9])
    assert (bad["case_id"], bad["verdict"], bad["code"]) == ("broken", "refused", "E-TRUNCATED")


def test_check_compares_with_a_bundle(image, monkeypatch, capsys):
    asked = bundles.Requirements(min_extent_mm=500.0)
    monkeypatch.setattr(bundles, "requirements", lambda bundle: asked if bundle == "big" else None)
    assert cli.main(["check", str(image), "--bundle", "big"]) == 1
    assert "500" in capsys.readouterr().out


def test_check_labels_judges_pairs_and_writes_the_page(tmp_path, capsys):
    data, page = str(make_dataset.folders(tmp_path / "data")), tmp_path / "page.html"
    assert cli.main(["check", data, "--labels", "-o", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "paired folders: 3 cases, 3 people" in printed
    assert str(page) in printed
    assert page.is_file()
    make_dataset.put(tmp_path / "data" / "labels" / "b_seg.nii.gz", make_dataset.labels()[1:])
    assert cli.main(["check", data, "--labels", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [case["verdict"] for case in told["cases"]] == ["ok", "refused", "ok"]
    assert told["classes"]["class_1"]["cases"] == 2
    assert cli.main(["check", str(tmp_path), "--labels"]) == 2
    assert "E-LAYOUT" in capsys.readouterr().err
    assert cli.main(["check", data, "-o", str(page)]) == 2


def test_segment_passes_on_what_was_typed(calls):
    typed = (
        "segment a.nii b/ -o out --bundle mine.zip --device cpu --format nifti,dicom-seg --overwrite --part 2/8 "
        "--uncertainty --trust-bundle --set inferer::overlap=0.5 --set network_def::depth=[1,2] --series 1.2.3 "
        "--allow-gaps --affine qform --volume 0 --max-memory 1.5GB"
    )
    assert cli.main(typed.split()) == 0
    ((inputs, output), options) = calls[0]
    assert (inputs, output) == (["a.nii", "b/"], "out")
    assert options == {
        "bundle": "mine.zip",
        "device": "cpu",
        "options": ReadOptions("1.2.3", allow_gaps=True, affine="qform", volume=0, max_memory=1_500_000_000),
        "formats": ("nifti", "dicom-seg"),
        "uncertainty": True,
        "overwrite": True,
        "part": (2, 8),
        "trust_bundle": True,
        "overrides": {"inferer::overlap": 0.5, "network_def::depth": [1, 2]},
        "progress": True,
    }


CHOICES = "--allow-gaps --affine qform --volume 1 --max-memory 1GB"


@pytest.mark.parametrize(
    ("typed", "series"),
    [
        ("register a.nii b.nii -o out --quiet --series 1.2 --series 1.3", ("1.2", "1.3")),
        ("warp a.nii --field f.nii -o out.nii.gz --series 1.2", "1.2"),
        ("invert f.nii --grid a.nii -o out.nii.gz", None),
    ],
)
def test_what_refusals_name_as_a_remedy_can_be_typed(typed, series, monkeypatch):
    from monai_attention.registration import apply, register

    given = []
    for module, name, value in ((register, "register", []), (apply, "warp", None), (apply, "invert", 0.0)):
        monkeypatch.setattr(module, name, lambda *_, value=value, options, **__: given.append(options) or value)
    assert cli.main([*typed.split(), *CHOICES.split()]) == 0
    assert given == [ReadOptions(series, allow_gaps=True, affine="qform", volume=1, max_memory=1_000_000_000)]


def test_what_nobody_typed_is_the_default_of_the_function(calls):
    assert cli.main(["segment", "a.nii", "-o", "out", "--quiet"]) == 0
    _, options = calls[0]
    assert options.pop("options") == ReadOptions()
    assert options.pop("overrides") == {}
    for name, value in options.items():
        assert value == ORIGINAL.__kwdefaults__[name], name


@pytest.mark.parametrize(("text", "size"), [("6GB", 6e9), ("512 MB", 512e6), ("2g", 2e9), ("1.5k", 1500), ("7", 7)])
def test_sizes_are_decimal(text, size, calls):
    cli.main(["segment", "a.nii", "-o", "out", "--max-memory", text])
    assert calls[0][1]["options"].max_memory == size


def test_refused_cases_end_with_1_and_say_why(calls, capsys):
    refused = result("refused", code="E-GAP", message="2 slices are missing", remedy="see --allow-gaps")
    calls.results = (result("ok", resumed=True), result("flagged", code="F-EMPTY", message="nothing found"), refused)
    assert cli.main(["segment", "a.nii", "-o", "out"]) == 1
    printed = capsys.readouterr().out
    assert "E-GAP 2 slices are missing (see --allow-gaps)" in printed
    assert "finished before" in printed
    assert "3 cases: 1 ok, 1 flagged, 1 refused" in printed
    assert str(Path("out/report.html")) in printed


def test_flagged_cases_are_results(calls, capsys):
    calls.results = (result("flagged", code="F-SPACING", message="coarse", volumes_ml={"brain-stem": 25.25}),)
    assert cli.main(["segment", "a.nii", "-o", "out"]) == 0
    assert "F-SPACING coarse" in (printed := capsys.readouterr().out)
    assert "25.2 mL" in printed or "25.3 mL" in printed


@pytest.mark.parametrize(("code", "end"), [("E-DISK-FULL", 1), ("E-READ-ONLY", 2), ("E-BUNDLE-UNTRUSTED", 2)])
def test_a_run_that_stops_says_whether_the_arguments_were_at_fault(code, end, monkeypatch, capsys):
    def stop(*args, **options):
        raise Refusal(code, "no", path="/out", remedy="do this")

    monkeypatch.setattr(segmenting, "segment", stop)
    assert cli.main(["segment", "a.nii", "-o", "out"]) == end
    assert f"{code} {Path('/out')}: no (do this)" in capsys.readouterr().err


def test_packaged_bundles_are_listed_and_described(capsys):
    assert cli.main(["bundles", "list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == bundles.packaged_names()
    assert DEFAULT_BUNDLE in listed
    assert cli.main(["bundles", "info", DEFAULT_BUNDLE]) == 0
    described = capsys.readouterr().out
    info = bundles.info(DEFAULT_BUNDLE)
    for said in (info.version, info.task, *info.classes.values(), *info.requirements.modalities):
        assert said in described


@pytest.mark.parametrize(("ok", "end"), [(True, 0), (False, 1)])
def test_verify_prints_every_check_and_ends_with_1_if_one_failed(ok, end, monkeypatch, capsys):
    checks = (bundle_verify.Check("files", True, "all 5"), bundle_verify.Check("weights", ok, "30 MB"))
    monkeypatch.setattr(bundle_verify, "verify", lambda bundle, full: bundle_verify.Verification(bundle, checks))
    assert cli.main(["bundles", "verify", "mine"]) == end
    assert capsys.readouterr().out == f"ok   files: all 5\n{'ok  ' if ok else 'FAIL'} weights: 30 MB\n"


def test_demo_segments_its_phantom_without_network(tmp_path):
    """From the first import to the report, in a process in which asking for an address or a connection fails."""
    ran = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_NETWORK, PROMISE, "demo", "-o", str(tmp_path), "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert PROMISE not in ran.stderr, ran.stderr[-3000:]
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert list(tmp_path.glob("segmentation/*/labels.nii.gz"))
