"""The benchmark of robustness in small: heads made of formulas, a tiny network."""

import json
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from benchmarks import robustness
from benchmarks.cohorts import BRAIN, PARTS, Task, fineness, render, targets, with_tumour
from benchmarks.registration import left
from benchmarks.robustness import CONDITIONS, TUMOUR_CONDITIONS, condition_table, conditions_of, figures
from monai_attention.bundles import info
from monai_attention.synthesis.phantom import head_labels

CLASSES = {"cerebellum": [7, 46, 8, 47], "brain-stem": [16]}
WORLD = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def test_a_run_renders_evaluates_and_goes_into_the_card(people, source, tmp_path, monkeypatch):
    card = source / "docs/README.md"
    card.parent.mkdir(exist_ok=True)
    title = f"robustness, {info(source).name}"
    card.write_text(f"Before.\n<!-- {title} -->\nold\n<!-- end of {title} -->\nAfter.\n")
    (source / "configs/train.json").write_text(json.dumps({"classes": CLASSES}))
    monkeypatch.setattr("benchmarks.networks.HERE", tmp_path)
    some = {name: CONDITIONS[name] for name in ("like T1, 2 mm", "slices of 5 mm, 1 mm within")}
    monkeypatch.setattr("benchmarks.robustness.CONDITIONS", some)
    given = ["--labels", people, "--work", tmp_path / "work", "--bundle", source, "--threads", "1", "--save"]
    robustness.main([str(one) for one in given])
    text = card.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    for line in (*(f"| {name} |" for name in some), "| cerebellum |", "| brain-stem |"):
        assert line in text
    (result,) = json.loads((tmp_path / "numbers.json").read_text()).values()
    assert [len(result[name]["dice"]) for name in some] == [3, 3]


def test_a_card_without_a_place_for_the_tables_is_refused_before_anything_is_done(people, source, tmp_path, capsys):
    (source / "docs").mkdir(exist_ok=True)
    (source / "docs/README.md").write_text("No marks.\n")
    given = ["--labels", people, "--work", tmp_path / "work", "--bundle", source, "--save"]
    with pytest.raises(SystemExit):
        robustness.main([str(one) for one in given])
    assert "to put the tables between" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_slices_are_thick_from_foot_to_head(axes):
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([WORLD[code] for code in axes])
    assert "".join(nibabel.aff2axcodes(affine)) == axes
    edges = fineness(affine, CONDITIONS["slices of 5 mm, 1 mm within"])
    assert edges == tuple(5 if code in "SI" else 1 for code in axes)


def test_conditions_differ_from_the_first_in_one_thing():
    first, *others = CONDITIONS.values()
    for other in others:
        assert (
            sum(getattr(first, name) != getattr(other, name) for name in ("sequences", "noise", "bias", "voxel_mm"))
            == 1
        )


def test_a_voxel_is_the_mean_of_what_it_holds_and_belongs_to_most_of_it():
    labels = np.zeros((2, 2, 10), np.int16)
    labels[..., :3], labels[..., 3:5], labels[..., 5:7] = 2, 3, 3
    task = Task({"white": (2,), "grey": (3,)}, {"image": {2: 0.9, 3: 0.4}}, noise=0.0, bias=0.0)
    image = render(labels, (1, 1, 5), task, (1,))
    assert image.shape == (2, 2, 2)
    white, grey = (np.unique(image[..., 0])[0] * 5, image[0, 0, 1] * 5 / 2)
    assert grey == pytest.approx(400, rel=0.15)
    assert white == pytest.approx(3 * 900 + 2 * grey, rel=0.15)
    assert targets(labels, (1, 1, 5), task)[0, 0].tolist() == [1, 0]


def test_a_line_tells_the_mean_and_the_worst_and_best_scan():
    one = {"dice": [0.5, 0.7, 0.9], "hd95_mm": [1.0, 2.0, 6.0], "truth_ml": [1.0, 2.0, 3.0], "found_ml": [4.0] * 3}
    lines = condition_table({"plain": one, "none": one | {"dice": [None] * 3, "hd95_mm": [None] * 3}}).splitlines()
    assert lines[2:] == ["| plain | 0.70 | 0.50 to 0.90 | 3.0 | 2 and 4 |", "| none |  |  |  | 2 and 4 |"]


def test_a_scan_without_anything_to_find_has_no_dice():
    values = {"dice": [[0.5, np.nan], [0.0, np.nan]], "hd95_mm": [[2.0, np.nan], [np.nan, np.nan]]}
    values |= {"truth_ml": [[3.0, 0.0], [0.0, 0.0]], "found_ml": [[2.0, 0.0], [4.0, 0.0]]}
    found = SimpleNamespace(values=lambda metric: np.array(values[metric]), classes={1: "a", 2: "b"})
    result = figures(found)
    assert (result["dice"], result["hd95_mm"]) == ([0.5, None], [2.0, None])
    assert result["found_ml"] == [2.0, 4.0]
    assert result["classes"]["b"]["dice"] == [None, None]


def test_an_unknown_condition_is_refused_with_the_known_ones(people, source, tmp_path, capsys):
    (source / "configs/train.json").write_text(json.dumps({"classes": CLASSES}))
    given = ["--labels", people, "--work", tmp_path / "work", "--bundle", source, "--only", "like T9"]
    with pytest.raises(SystemExit):
        robustness.main([str(one) for one in given])
    assert "expected some of like T1, 2 mm, like T2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        robustness.main([str(one) for one in given[:-1]] + ["like PD", "--save"])
    assert "not that of --only" in capsys.readouterr().err


def test_too_few_people_are_refused(tmp_path):
    with pytest.raises(ValueError, match="label maps of 3 people and more; got 2"):
        robustness.judge("like PD", CONDITIONS["like PD"], [tmp_path] * 2, "any", tmp_path)


def test_a_bundle_that_knows_tumours_is_judged_on_tumours():
    assert conditions_of({"classes": CLASSES}).keys() == CONDITIONS.keys()
    conditions = conditions_of({"classes": CLASSES, "seats": [2, 41]})
    assert {len(task.sequences) for task in conditions.values()} == {4}
    assert [name for name, task in conditions.items() if not task.tumour] == ["without tumour"]


@pytest.mark.parametrize(("label", "structure"), [(25, 2), (57, 2), (136, 4), (163, 4), (164, 5), (54, 18), (16, 16)])
def test_a_label_and_its_mirror_image_are_one_structure(label, structure):
    assert left(label) == structure


def test_a_tumour_grows_in_white_matter_and_pushes_the_rest_away():
    labels, _ = head_labels(2.0)
    maps = [with_tumour(labels, 2.0, seed) for seed in range(4)]
    for grown in maps:
        parts = np.isin(grown, PARTS)
        assert np.isin(labels, (2, 41))[parts].mean() > 0.2
        assert np.isin(labels, BRAIN)[parts].mean() > 0.9
    assert any((grown != labels)[~np.isin(grown, PARTS)].any() for grown in maps)
    assert np.array_equal(maps[3], with_tumour(labels, 2.0, seed=3))
    assert len({grown.tobytes() for grown in maps}) == 4
    with pytest.raises(ValueError, match="expected white matter"):
        with_tumour(np.zeros_like(labels), 2.0, seed=3)


def test_a_brain_without_skull_is_black_around_and_has_a_channel_a_sequence():
    labels, affine = head_labels(1.0)
    task = TUMOUR_CONDITIONS["brains at 2 mm"]
    image, whole = (render(labels, fineness(affine, one), one, (1,)) for one in (task, replace(task, skull=True)))
    assert image.shape == (*targets(labels, fineness(affine, task), task).shape, 4)
    assert (image > 300).any(axis=(0, 1, 2)).all()
    assert (image > 300).sum() < (whole > 300).sum()
