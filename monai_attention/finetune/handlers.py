"""What a training does besides learning: stop before it is spoilt, repeat itself after a kill, keep a table."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_attention.bundle_config import Config, read_config, walk
from monai_attention.cohort.phases import peak_bytes
from monai_attention.errors import Refusal
from monai_attention.finetune.labelled import listed
from monai_attention.finetune.processes import gathered, rank
from monai_attention.io.write import replacing, write_json, write_text


def loss_of(engine: Engine) -> float:
    """The loss of an iteration of MONAI's trainer, whose output is a list of an item a sample."""
    output: Any = engine.state.output
    return float((output[0] if isinstance(output, Sequence) else output)["loss"])


def whole_checkpoints(folder: str | Path) -> list[str]:
    """The checkpoints of a training that were written to their end, the furthest last.

    One that was being written when the training was killed, or the disk became full, lacks the end that every zip has.
    """
    epochs = {path: path.stem.partition("=")[2] for path in Path(folder).glob("checkpoint_epoch=*.pt")}
    found = [path for path, epoch in epochs.items() if epoch.isdigit() and zipfile.is_zipfile(path)]
    return [str(path) for path in sorted(found, key=lambda path: int(epochs[path]))]


class StopOnNonFinite:
    """Stops a training whose loss is NaN or infinite, before a checkpoint is written, and names its cases.

    Of several processes all must find that: attach it after `processes.LossOfAll`.

    Args:
        checkpoints: folder of the last good state, for the message.
    """

    def __init__(self, checkpoints: str | Path) -> None:
        self.checkpoints = Path(checkpoints)

    def attach(self, engine: Engine) -> None:
        """Look at each iteration of `engine`, whose output has a `loss`, and whose batches may have a `case`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the loss.

        Raises:
            Refusal: E-LOSS.
        """
        loss = loss_of(engine)
        if not math.isfinite(loss):
            batch: Any = engine.state.batch
            # MONAI's trainer has taken the batch apart by now.
            own = batch.get("case", []) if isinstance(batch, dict) else [one["case"] for one in batch if "case" in one]
            cases = ", ".join(dict.fromkeys(case for named in gathered(list(own)) for case in named))
            message = f"the loss is {loss} at iteration {engine.state.iteration}" + (f", on {cases}" if cases else "")
            remedy = "begin again in another folder at a lower learning rate"
            if cases:
                remedy = f"look at these cases; then {remedy}, or without them"
            raise Refusal("E-LOSS", message, path=self.checkpoints, remedy=remedy)


class SamePlan:
    """Keeps what a training began by beside its checkpoints, and refuses to go on by anything else.

    The states of the optimiser and of the schedule in a checkpoint are those of the plan they were made by; with
    another one the training would be neither the old nor the new. Without a checkpoint there is nothing to go on with,
    and the plan may be edited.

    Args:
        config: the training's `train.json`.
        checkpoints: folder of its checkpoints.
    """

    def __init__(self, config: str | Path, checkpoints: str | Path) -> None:
        self.config = Path(config)
        self.checkpoints = Path(checkpoints)

    def attach(self, engine: Engine) -> None:
        """Look before `engine` begins; attach it before what loads the checkpoint."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare, and keep.

        Raises:
            Refusal: E-PLAN-CHANGED.
        """
        self.check()
        if rank() > 0:
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self._kept, self.config.read_text(encoding="utf-8"))

    def check(self) -> None:
        """Compare.

        Raises:
            Refusal: E-PLAN-CHANGED, naming what differs.
        """
        if not (self._kept.is_file() and whole_checkpoints(self.checkpoints)):
            return
        before, now = (_leaves(read_config(path)) for path in (self._kept, self.config))
        if changed := sorted({id for id, _ in before.items() ^ now.items()}):
            message = f"it was edited after the training's first epoch: {listed(changed)}"
            remedy = f"undo that (it was as in {self._kept}), or delete {self.checkpoints} to begin anew"
            raise Refusal("E-PLAN-CHANGED", message, path=self.config, remedy=remedy)

    @property
    def _kept(self) -> Path:
        return self.checkpoints / self.config.name


def _leaves(config: Config) -> dict[str, str]:
    """What has nothing below it, by id, as JSON."""
    return {id: json.dumps(value) for id, value in walk(config.tree) if not (isinstance(value, dict | list) and value)}


class Reseed:
    """Seeds torch anew at every epoch, so that a training that was killed draws what it would have drawn.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Do so for `engine`."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed by the number of the epoch, and of the process: each drops other features."""
        torch.manual_seed(self.seed * 1_000_003 + engine.state.epoch + (rank() << 40))


class KeepBest:
    """Keeps the weights that validation liked best, across kills too: their score and epoch are in a JSON beside them.

    Args:
        path: of the weights, a plain state dict.
        network: whose they are.
        metric: which of the validation's is compared, higher is better; NaN is worse than any.
    """

    def __init__(self, path: str | Path, network: nn.Module, metric: str) -> None:
        self.path = Path(path)
        self.network = network
        self.metric = metric

    def attach(self, engine: Engine) -> None:
        """Look at every validation of `engine`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the weights if nothing was better."""
        score = float(engine.state.metrics[self.metric])
        score = score if math.isfinite(score) else -sys.float_info.max
        note = self.path.with_suffix(".json")
        best = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if best is not None and best["score"] > score and best["epoch"] < engine.state.epoch:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {"score": score, "epoch": engine.state.epoch})  # first: with it alone, the epoch is done again
        _save(self.path, self.network)


class KeepLast:
    """Keeps the weights that a training ends with, whatever validation says of them.

    Args:
        path: of the weights, a plain state dict.
        network: whose they are.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Wait for the end of `engine`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the weights."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _save(self.path, self.network)


def _save(path: Path, network: nn.Module) -> None:
    with replacing(path) as temporary:
        torch.save(network.state_dict(), temporary)


class EpochTable:
    """Writes a CSV with a row an epoch: mean loss, learning rate, seconds, peak memory, and what validation measured.

    A training that is resumed goes on with the table; rows of epochs that are done again are dropped.

    Args:
        path: of the table.
        validator: whose metrics are written in the epochs that it looked at.
        rate: the learning rate, asked as well.
        device: whose memory is told.
    """

    def __init__(
        self, path: str | Path, validator: Engine, rate: Callable[[], float], device: str | torch.device = "cpu"
    ) -> None:
        self.path = Path(path)
        self.validator = validator
        self.rate = rate
        self.device = torch.device(device)
        self.rows: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow `engine`; attach it after the handler that validates."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._listen)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        if not self.rows and self.path.is_file():  # resumed; the epoch is known only now
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < engine.state.epoch]
        self.losses, self.began = [], time.monotonic()

    def _listen(self, engine: Engine) -> None:
        self.losses.append(loss_of(engine))

    def _write(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": engine.state.epoch, "loss": f"{sum(self.losses) / len(self.losses):.5f}"}
        row |= {"learning_rate": f"{self.rate():.3g}", "seconds": f"{time.monotonic() - self.began:.1f}"}
        row |= {"peak_gb": f"{peak_bytes(self.device) / 1e9:.2f}"}
        looked = self.validator.state.epoch == engine.state.epoch
        metrics = self.validator.state.metrics if looked else {}
        self.rows.append(row | {name: f"{float(value):.4f}" for name, value in metrics.items()})
        text = io.StringIO()
        table = csv.DictWriter(
            text, list(dict.fromkeys(name for row in self.rows for name in row)), lineterminator="\n"
        )
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, text.getvalue())
