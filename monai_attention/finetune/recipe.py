"""The configurations of a fine-tuned bundle: the source's, with what is new put in. Plain MONAI runs them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from monai_attention.bundle_config import Config
from monai_attention.finetune.plan import Plan


def inference_config(source: Config, *, channels: int, classes: int) -> dict[str, Any]:
    """`inference.json`: the source's for other channels and classes.

    Args:
        source: `inference.json` as it is in the bundle's folder.
        channels: of the image.
        classes: with background.
    """
    tree = copy.deepcopy(source.tree)
    tree["network_def"] |= {"in_channels": channels, "out_channels": classes}
    return tree


def train_config(
    inference: Mapping[str, Any],
    plan: Plan,
    *,
    trained: Mapping[str, float],
    fold: int | None,
    data: str = "data",
) -> dict[str, Any]:
    """`train.json`: trains on the crops of `data/`, in the bundle's own folder, and goes on where it was stopped.

    Args:
        inference: `inference.json` of the new bundle.
        plan: its values stand at the top.
        trained: the parameters that every method trains, the head's and input layers made anew, and at how many times
            `learning_rate`; from scratch those that Muon leaves to AdamW, all input layers and the head's, at one rate.
        fold: held out; None trains on all cases.
        data: folder of the prepared cases, from the bundle's.
    """
    window = {key: value for key, value in inference["inferer"].items() if key != "progress"}
    scripts = "monai_attention.finetune"
    own = ["roi_size", "batch_size", "epoch_length", "max_epochs", "val_interval", "learning_rate"]
    adapted = {
        "full": "@loaded",
        "head": "$train_only(@loaded, @trained) or @loaded",
        "lora": "$add_lora(@loaded, train=@trained) and @loaded",
        "scratch": "@loaded",
    }
    scratch = plan.method == "scratch"
    optimizer = {
        "_target_": "torch.optim.AdamW",
        "params": "$parameter_groups(@adapted, @learning_rate, decay=@rate_decay, own=@trained)",
    }
    if scratch:
        optimizer = {
            "_target_": f"{scripts}.optimizers.MuonAdamW",
            "params": "$@adapted.named_parameters()",
            "outer": "$list(@trained)",
        }
    else:
        own.append("rate_decay")
    rate = "@learning_rate * @lr_schedule.lr_lambdas[0](@lr_schedule.last_epoch)"
    told = f"$lambda output: {{'loss': float(output[0]['loss']), 'learning_rate': {rate}}}"
    flips = (
        [{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}] if plan.mirror else []
    )
    return {
        "imports": [
            "$import json",
            "$import os",
            "$from importlib.util import find_spec",
            "$from monai_attention.blocks.convolution import thin_in_float32",
            "$from monai_attention.checkpoints import load_weights",
            f"$from {scripts}.handlers import whole_checkpoints",
            f"$from {scripts}.lora import add_lora",
            f"$from {scripts}.precision import bfloat16_is_fast",
            f"$import {scripts}.processes as processes",
            f"$from {scripts}.rates import parameter_groups",
            f"$from {scripts}.rates import train_only",
            f"$from {scripts}.release import release",
        ],
        "bundle_root": ".",
        "data_dir": f"$@bundle_root + '/{data}'",
        "fold": fold,
        "output_dir": "$@bundle_root + '/runs/' + ('all' if @fold is None else 'fold_' + str(@fold))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "seed": 0,
        "num_workers": 1,
        "amp": "$bfloat16_is_fast(@device)",
        "tensorboard": "$find_spec('tensorboard') is not None",
        "mlflow": None,  # or the address of a server, or sqlite:///FILE
        **{name: _plain(getattr(plan, name)) for name in own},
        "ema_momentum": "$max(0.01, min(0.9, 10 / (@max_epochs * @epoch_length)))",  # the last tenth, 100 steps at most
        "trained": dict(trained),
        "cases": "$json.load(open(@data_dir + '/cases.json', encoding='utf-8'))",
        **{key: value for key, value in inference.items() if key in _needed(inference)},
        "network_def": {**inference["network_def"], **plan.network},
        "network": "$thin_in_float32(@network_def).to(@device)",  # a network of any library
        "crops_each": "$processes.crops_each(@batch_size)",  # for every process that torchrun started
        "loaded": "$load_weights(@network, @bundle_root + '/models/initial.pt') and @network",
        "adapted": adapted[plan.method],
        "autocast": "$torch.autocast(@device.type, torch.bfloat16, enabled=@amp)",
        "loss": {"_target_": f"{scripts}.loss.PartialDiceCE", "log_dice": scratch},
        "optimizer": {**optimizer, "lr": "@learning_rate"},
        "lr_schedule": {
            "_target_": "monai.optimizers.WarmupCosineSchedule",
            "optimizer": "@optimizer",
            "warmup_steps": "$min(@epoch_length, @max_epochs * @epoch_length // 10)",
            "warmup_multiplier": 0.1,
            "t_total": "$@max_epochs * @epoch_length",
        },
        "ema": {"_target_": "ignite.handlers.EMAHandler", "model": "@adapted", "momentum": "@ema_momentum"},
        "augment": {
            "_target_": "Compose",
            "transforms": [
                *flips,
                {
                    "_target_": "RandAffined",
                    "keys": ["image", "label"],
                    "prob": 0.5,
                    "rotate_range": [0.26, 0.26, 0.26],
                    "scale_range": [0.15, 0.15, 0.15],
                    "mode": ["bilinear", "nearest"],
                    "padding_mode": "border",
                },
                {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.3, "std": 0.05},
                {"_target_": "RandGaussianSmoothd", "keys": "image", "prob": 0.2},
                {"_target_": "RandScaleIntensityd", "keys": "image", "factors": 0.2, "prob": 0.5},
                {"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.1, "prob": 0.5},
            ],
        },
        "checkpoints": "$whole_checkpoints(@output_dir)",
        "writer": {
            "_target_": "torch.utils.tensorboard.SummaryWriter",
            "_disabled_": "$not @tensorboard or processes.rank() > 0",
            "log_dir": "$@output_dir + '/tensorboard'",
        },
        "train": {
            "cases": {
                "_target_": f"{scripts}.crops.PreparedCases",
                "folder": "@data_dir",
                "cases": "$[case for case in @cases if case['fold'] != @fold]",  # with fold None: all
            },
            "dataset": {
                "_target_": f"{scripts}.crops.PreparedCrops",
                "cases": "@train#cases",
                "roi_size": "@roi_size",
                "transform": "@augment",
                "length": "$@max_epochs * @epoch_length * @crops_each * processes.count()",
                "seed": "@seed",
            },
            "dataloader": {
                "_target_": "torch.utils.data.DataLoader",
                "dataset": "@train#dataset",
                "batch_size": "@crops_each",
                "sampler": {  # in order, and a step's crops are the same however many processes share them
                    "_target_": "torch.utils.data.DistributedSampler",
                    "dataset": "@train#dataset",
                    "num_replicas": "$processes.count()",
                    "rank": "$processes.rank()",
                    "shuffle": False,
                },
                "num_workers": "@num_workers",
                "generator": "$torch.Generator()",  # takes none of the network's random numbers for its workers' seeds
            },
            "inferer": "$lambda images, network: @autocast(network)(images)",
            "handlers": [
                {
                    "_target_": f"{scripts}.handlers.SamePlan",
                    "config": "$@bundle_root + '/configs/train.json'",
                    "checkpoints": "@output_dir",
                },
                {"_target_": f"{scripts}.processes.LossOfAll"},
                {"_target_": f"{scripts}.handlers.StopOnNonFinite", "checkpoints": "@output_dir"},
                {
                    "_target_": "LrScheduleHandler",
                    "lr_scheduler": "@lr_schedule",
                    "epoch_level": False,
                    "print_lr": False,
                },
                {
                    "_target_": "ValidationHandler",
                    "_disabled_": "$@fold is None",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": "@val_interval",
                },
                {
                    "_target_": "ValidationHandler",
                    "_disabled_": "$@fold is None or @max_epochs % @val_interval == 0",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": "@max_epochs",
                },
                {
                    "_target_": f"{scripts}.handlers.EpochTable",
                    "_disabled_": "$processes.rank() > 0",
                    "path": "$@output_dir + '/epochs.csv'",
                    "validator": "@validate#evaluator",
                    "rate": f"$lambda: {rate}",
                    "device": "@device",
                },
                *_tracked({"epoch_log": False, "output_transform": told}, {"close_on_complete": True}),
                {
                    "_target_": f"{scripts}.handlers.KeepLast",
                    "_disabled_": "$processes.rank() > 0",
                    "path": "$@output_dir + '/last.pt'",
                    "network": "$@ema.ema_model",
                },
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@max_epochs",
                "epoch_length": "@epoch_length",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "$processes.parallel(@adapted)",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
            },
        },
        "state": {
            "trainer": "@train#trainer",
            "model": "@adapted",
            "ema": "$@ema.ema_model",
            "optimizer": "@optimizer",
            "lr_schedule": "@lr_schedule",
        },
        "save": {
            "_target_": "CheckpointSaver",
            "save_dir": "@output_dir",
            "save_dict": "@state",
            "save_interval": 1,
            "n_saved": 2,
        },
        "resume": {
            "_target_": "CheckpointLoader",
            "_disabled_": "$not @checkpoints",
            "load_path": "$@checkpoints[-1] if @checkpoints else ''",
            "load_dict": "@state",
            "map_location": "cpu",
        },
        "continue": {
            "_target_": "monai_attention.synthesis.dataset.ContinueFrom",
            "dataset": "@train#dataset",
            "batch_size": "$@crops_each * processes.count()",
        },
        "reseed": {"_target_": f"{scripts}.handlers.Reseed", "seed": "@seed"},
        "validate": {
            "dataset": {
                "_target_": f"{scripts}.crops.PreparedCases",
                "folder": "@data_dir",
                "cases": "$processes.share([case for case in @cases if case['fold'] == @fold])",
            },
            "dataloader": {"_target_": "torch.utils.data.DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
            "inferer": {"_target_": "monai_attention.inference.label_inferer.LabelInferer", "inferer": window},
            "handlers": _tracked({"iteration_log": False}, {}),
            "key_metric": {
                "val_mean_dice": {
                    "_target_": "MeanDice",
                    "include_background": False,
                    "num_classes": inference["network_def"]["out_channels"],  # labels come, not a channel a class
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "$@ema.ema_model",
                "inferer": "@validate#inferer",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
        "release": ["$release(@output_dir + '/last.pt', @adapted, @bundle_root)"],
        "initialize": ["$processes.join(@device)", "$monai.utils.set_determinism(@seed)"],
        "run": [
            "$@save.attach(@train#trainer)",
            "$@resume.attach(@train#trainer) if @checkpoints else None",
            "$@continue.attach(@train#trainer)",
            "$@reseed.attach(@train#trainer)",
            "$@ema.attach(@train#trainer)",
            "$@train#trainer.run()",
        ],
    }


def _tracked(what: Mapping[str, Any], of_mlflow: Mapping[str, Any]) -> list[dict[str, Any]]:
    """MONAI's handlers for TensorBoard and MLflow; those of training and validation write to the same run."""
    return [
        {
            "_target_": "TensorBoardStatsHandler",
            "_disabled_": "$not @tensorboard or processes.rank() > 0",
            "summary_writer": "@writer",
            **what,
        },
        {
            "_target_": "MLFlowHandler",
            "_disabled_": "$not @mlflow or processes.rank() > 0",
            "tracking_uri": "@mlflow",
            "experiment_name": "$os.path.basename(os.path.abspath(@bundle_root))",
            "run_name": "$os.path.basename(@output_dir)",
            **what,
            "optimizer_param_names": [],  # the rate of each of dozens of groups, at every step
            **of_mlflow,
        },
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _needed(inference: Mapping[str, Any]) -> set[str]:
    """Entries that the network and the inferer are made of."""
    from monai_attention.bundle_config import reachable

    return {id.partition("::")[0] for id in reachable(dict(inference), ("network_def", "inferer"))} - {"inferer"}
