import csv
import json
import math

import pytest
import torch
from ignite.engine import Engine

from monai_attention import Refusal
from monai_attention.finetune.handlers import EpochTable, KeepBest, Reseed, SamePlan, StopOnNonFinite, whole_checkpoints
from tests.refusals import refusal


def engine(losses):
    """Gives these losses, one an iteration, as MONAI's trainer does."""
    given = iter(losses)
    return Engine(lambda _, batch: [{"loss": next(given)}])


BATCH = {"case": ["a", "b", "a"]}


@pytest.mark.parametrize("taken_apart", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_row_55_a_loss_that_is_no_number_stops_the_training_and_names_the_cases(tmp_path, bad, taken_apart):
    running = engine([0.5, bad, 0.1])
    StopOnNonFinite(tmp_path).attach(running)
    batch = [{"case": case} for case in BATCH["case"]] if taken_apart else BATCH
    with pytest.raises(Refusal) as caught:
        running.run([batch] * 3, max_epochs=1)
    assert caught.value.code == "E-LOSS"
    assert caught.value.path == tmp_path
    assert "a, b" in caught.value.message
    assert running.state.iteration == 2


@pytest.mark.parametrize("batch", [{"image": torch.zeros(1)}, [{"image": torch.zeros(1)}]])
def test_a_loss_of_images_without_a_name_that_is_no_number_stops_the_training_as_well(tmp_path, batch):
    running = engine([math.nan])
    StopOnNonFinite(tmp_path).attach(running)
    with pytest.raises(Refusal, match="the loss is nan at iteration 1") as caught:
        running.run([batch], max_epochs=1)
    assert caught.value.remedy == "begin again in another folder at a lower learning rate"


def test_row_50_a_training_goes_on_only_by_the_plan_that_it_began_with(tmp_path):
    config, runs = tmp_path / "train.json", tmp_path / "runs/fold_0"

    def begin(**changes):
        plan = {"seed": 0, "size": [1, 2], "train": {"rate": 0.1, "warm": None}, "steps": []}
        config.write_text(json.dumps(plan | changes))
        running = Engine(lambda *_: None)
        SamePlan(config, runs).attach(running)
        running.run([0], max_epochs=1)

    begin(seed=5)
    assert json.loads((runs / "train.json").read_text())["seed"] == 5
    begin()  # killed in the first epoch: nothing to go on with
    kept = (runs / "train.json").read_bytes()
    torch.save({}, runs / "checkpoint_epoch=1.pt")
    begin()
    assert (runs / "train.json").read_bytes() == kept
    SamePlan(config, runs).check()
    for changes, told in (
        ({"seed": 1}, "seed"),
        ({"size": [1, 3]}, "size::1"),
        ({"train": {"rate": 0.2}}, "train::rate, train::warm"),
        ({"more": None}, "more"),
        ({"steps": {}}, "steps"),
    ):
        refused = refusal(begin, **changes)
        assert refused.code == "E-PLAN-CHANGED"
        assert refused.message.endswith(f": {told}")
        assert refused.path == config
        assert str(runs) in refused.remedy
        assert (runs / "train.json").read_bytes() == kept
    (runs / "train.json").unlink()  # begun by an earlier version
    begin(seed=2)
    assert (runs / "train.json").read_bytes() == config.read_bytes()


def test_the_furthest_checkpoint_is_the_last_whenever_it_was_written(tmp_path):
    for epoch in (10, 9, 2):  # copied in any order
        torch.save({}, tmp_path / f"checkpoint_epoch={epoch}.pt")
    (tmp_path / "checkpoint_epoch=11.pt").write_bytes(b"cut off")
    (tmp_path / "checkpoint_epoch=12 (copy).pt").write_bytes((tmp_path / "checkpoint_epoch=2.pt").read_bytes())
    assert [path.rpartition("=")[2] for path in whole_checkpoints(tmp_path)] == ["2.pt", "9.pt", "10.pt"]


def test_the_best_is_kept_across_kills_and_what_is_no_number_never_is(tmp_path):
    network, engine = torch.nn.Linear(1, 1), Engine(lambda engine, batch: None)
    kept = []
    for epoch, score in enumerate((math.nan, -3.0, math.nan, -math.inf, -2.0, -2.5), start=1):
        torch.nn.init.constant_(network.weight, epoch)
        engine.state.epoch, engine.state.metrics = epoch, {"likeness": score}
        KeepBest(tmp_path / "best.pt", network, "likeness")(engine)  # another one, as after a kill
        kept.append(int(torch.load(tmp_path / "best.pt", weights_only=True)["weight"]))
    assert kept == [1, 2, 2, 2, 5, 5]
    assert json.loads((tmp_path / "best.json").read_text()) == {"score": -2.0, "epoch": 5}


def test_an_epoch_draws_the_same_whether_or_not_others_came_before():
    drawn = {}

    def run(first):
        running = Engine(lambda one, _: drawn.setdefault((first, one.state.epoch), float(torch.rand(()))))
        Reseed(3).attach(running)
        running.state.epoch = first
        running.run([0], max_epochs=3, epoch_length=1) if first == 0 else None
        if first:
            running.load_state_dict({"epoch": first, "max_epochs": 3, "epoch_length": 1})
            running.run([0])

    run(0)
    torch.rand(5)
    run(1)
    assert drawn[0, 3] == drawn[1, 3]
    assert drawn[0, 2] != drawn[0, 3]


def test_the_table_goes_on_after_a_training_was_resumed(tmp_path):
    path, scores = tmp_path / "run/epochs.csv", [{}]

    def run(losses, state=None):
        running, validator = engine(losses), Engine(lambda *_: None)
        validator.state.epoch, validator.state.metrics = 3, scores[0]
        EpochTable(path, validator, lambda: 0.01).attach(running)
        if state:
            running.load_state_dict(state)
        running.run([BATCH] * 2, max_epochs=None if state else 3, epoch_length=None if state else 2)

    run([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    scores[0] = {"dice": 0.5}
    run([7.0, 8.0], {"epoch": 2, "max_epochs": 3, "epoch_length": 2})
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], float(row["loss"]), row["dice"]) for row in rows] == [
        ("1", 1.5, ""),
        ("2", 3.5, ""),
        ("3", 7.5, "0.5000"),
    ]
    assert {row["learning_rate"] for row in rows} == {"0.01"}
