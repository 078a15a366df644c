"""Run the training of a bundle, as `python -m monai.bundle run` does, with a bar; a killed one goes on."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from monai_attention.cohort.device import device_of
from monai_attention.cohort.phases import peak_bytes
from monai_attention.errors import Refusal
from monai_attention.finetune.handlers import SamePlan, loss_of
from monai_attention.finetune.processes import rank
from monai_attention.finetune.release import release
from monai_attention.io.write import sweep_leftovers, write_text

DONE = "done"
"""Written when a training is over and its weights are in their bundle."""


def output_of(bundle: Path, fold: int | None) -> Path:
    """Folder of a training's checkpoints and its table, `epochs.csv`."""
    return bundle / "runs" / ("all" if fold is None else f"fold_{fold}")


def is_over(bundle: Path, fold: int | None) -> bool:
    """Whether a training has ended, and its weights are in their bundle."""
    return (output_of(bundle, fold) / DONE).is_file()


def train(bundle: Path, fold: int | None, target: Path, *, device: str | None = None, progress: bool = False) -> None:
    """Train a bundle by its `configs/train.json`, or go on with it, and put the weights of its end into a bundle.

    Args:
        bundle: folder of the bundle that has the configuration, and gets `runs/`.
        fold: held out; None trains on all cases.
        target: folder of the bundle that gets the weights: the same, or one of this fold's own.
        device: torch device; None: what `train.json` says.
        progress: show a bar of steps with the loss, the most memory, the last validation's Dice and the time left.

    Raises:
        Refusal: E-LOSS, E-DEVICE; E-PLAN-CHANGED, `train.json` was edited after the first epoch.
    """
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    if device is not None:
        device_of(device)
    config = bundle / "configs/train.json"
    SamePlan(config, output_of(bundle, fold)).check()  # of one that is over, too: the next one is to be like it
    if is_over(bundle, fold):
        return
    for place in (output_of(bundle, fold), target / "models"):
        sweep_leftovers(place)
    workflow = ConfigWorkflow(
        config_file=str(config),
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(bundle),
        fold=fold,
        **({} if device is None else {"device": f"$torch.device({device!r})"}),
    )
    workflow.initialize()
    parser = workflow.parser
    trainer, evaluator = (
        parser.get_parsed_content(f"{what}#{who}") for what, who in (("train", "trainer"), ("validate", "evaluator"))
    )
    total = parser.get_parsed_content("max_epochs") * parser.get_parsed_content("epoch_length")
    described = "training on all" if fold is None else f"training, fold {fold} held out"
    with tqdm(total=total, desc=described, unit="step", disable=not progress or rank() > 0) as bar:

        def advance(engine: object) -> None:
            bar.update(trainer.state.iteration - bar.n)
            told = {"loss": f"{loss_of(trainer):.3f}", "memory": f"{peak_bytes(trainer.state.device) / 1e9:.1f} GB"}
            bar.set_postfix(told | {name: f"{value:.3f}" for name, value in evaluator.state.metrics.items()})

        trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
        try:
            workflow.run()
        except RuntimeError as error:  # MONAI wraps what an expression raises
            if (refusal := _refusal_in(error)) is not None:
                raise refusal from None
            raise
    if rank() > 0:
        return
    folder = output_of(bundle, fold)
    release(folder / "last.pt", parser.get_parsed_content("adapted"), target)
    workflow.finalize()
    write_text(folder / DONE, "")


def _refusal_in(error: BaseException) -> Refusal | None:
    """The refusal that an error was raised for, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, Refusal):
        cause = cause.__cause__
    return cause
