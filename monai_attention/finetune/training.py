"""Run the training of a bundle, as `python -m monai.bundle run` does, with a bar; a killed one goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from monai_attention.cohort.device import device_of
from monai_attention.errors import Refusal
from monai_attention.finetune.handlers import loss_of
from monai_attention.finetune.release import release


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Args:
        folder: of its checkpoints and its table, `epochs.csv`.
        score: mean Dice over held-out cases and classes, of the weights that were kept.
        epoch: they are of.
    """

    folder: Path
    score: float
    epoch: int


def train(bundle: Path, *, device: str | None = None, progress: bool = False) -> Trained:
    """Train a bundle by its `configs/train.json`, and put the best weights into `models/model.pt`.

    Args:
        bundle: its folder.
        device: torch device; None: what `train.json` says.
        progress: show a bar of steps with the loss, the last validation's Dice and the time that is left.

    Raises:
        Refusal: E-LOSS, E-DEVICE.
    """
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    if device is not None:
        device_of(device)
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs/train.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(bundle),
        **({} if device is None else {"device": f"$torch.device({device!r})"}),
    )
    workflow.initialize()
    parser = workflow.parser
    trainer, evaluator = (
        parser.get_parsed_content(f"{what}#{who}") for what, who in (("train", "trainer"), ("validate", "evaluator"))
    )
    total = parser.get_parsed_content("max_epochs") * parser.get_parsed_content("epoch_length")
    with tqdm(total=total, desc="training", unit="step", disable=not progress) as bar:

        def advance(engine: object) -> None:
            bar.update(trainer.state.iteration - bar.n)
            told = {"loss": f"{loss_of(trainer):.3f}"}
            bar.set_postfix(told | {name: f"{value:.3f}" for name, value in evaluator.state.metrics.items()})

        trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
        try:
            workflow.run()
        except RuntimeError as error:  # MONAI wraps what an expression raises
            raise _refusal_in(error) or error from None
    folder = Path(parser.get_parsed_content("output_dir"))
    release(folder / "best.pt", parser.get_parsed_content("adapted"), bundle)
    workflow.finalize()
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    return Trained(folder, best["score"], best["epoch"])


def _refusal_in(error: BaseException) -> Refusal | None:
    """The refusal that an error was raised for, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Refusal):
        cause = cause.__cause__
    return cause
