"""The settings of the core, described: what each accepts and when it matters (robustft/cli/settings.py says how).

Those of components stand in their own YAML, under `takes`.
"""

from collections.abc import Mapping

from robustft.cli.accepted import BATCHES, COUNT, FLAG, NO_NEGATIVE, TEXT, Description

Case = Mapping[str, Description]  # settings by name, and how they have to be

TRAINS: Case = {"method.takes.trains": {"of": [True]}}
HOLDOUT: Case = {"data.holdout": {**COUNT, "or_null": True}}
LEAVES: Case = {"method.takes.leaves_model": {"of": [None, True]}}
WHOLE_RUN: Case = {"trainer.fast_dev_run": {"of": [False]}}  # else Lightning has its own limits
TIMED: Case = {**TRAINS, **WHOLE_RUN, "trainer.max_time": {"kind": "text"}}
LONG: Case = {**TRAINS, **WHOLE_RUN}
SCORED: list[Case] = [{**LONG, **HOLDOUT}, {**LONG, "data.validate": {"of": ["all"]}}]  # while it trains
# One model that was told about other tasks by text: others cannot be asked what they still know.
KNOWING: Case = {"model.pretrained": {"kind": "text"}, "model.takes.text": {"of": [None, True]}, **LEAVES}

CORE: dict[str, Description] = {
    "seed": {
        **{"kind": "whole", "from": 0, "to": 2**32 - 1},
        "when": [TRAINS, {**HOLDOUT, "data.holdout_seed": {"of": [None]}}, {"model.pretrained": {"of": [None]}}],
    },
    "sweep": TEXT,
    "check": {"of": ["data"], "or_null": True},
    "prepare": FLAG,
    "overwrite": FLAG,
    "keep_logits": FLAG,
    "resume": TEXT,
    "threads": {**COUNT, "or_null": True},
    "save_minutes": {"from": 0, "when": [{**TRAINS, "trainer.enable_checkpointing": {"of": [True]}}]},
    "optimizer.lr": {"above": 0, "when": [TRAINS]},
    "optimizer.weight_decay": {"from": 0, "when": [TRAINS]},
    "optimizer.beta2": {"from": 0, "below": 1, "when": [TRAINS]},
    "optimizer.warmup": {"from": 0, "by": "schedule"},
    "optimizer.beta1": {"from": 0, "below": 1, "by": "schedule"},
    "optimizer.max_momentum": {"from": 0, "below": 1, "by": "schedule"},
    "optimizer.base_momentum": {"from": 0, "below": 1, "by": "schedule"},
    "constraint.anchor": {"of": ["zeroshot", "init"], "by": "constraint"},
    "constraint.head": {**FLAG, "by": "constraint"},
    "result": {"of": ["student", "average"], "by": "moving"},
    "retain": {"kind": "anything"},
    "retain.*.path": {"any": [{"kind": "text"}, {"of": [False]}], "when": [KNOWING]},  # the first: see `spelled`
    "retain.*.kind": {"of": ["folders", "table", "torchvision"], "when": [KNOWING]},
    "retain.*.split": {**TEXT, "when": [KNOWING]},
    "retain.*.class_names": {**TEXT, "when": [KNOWING]},
    "retain.*.templates": {"any": [{"kind": "text"}, {"kind": "texts"}], "when": [KNOWING]},
    "retain.*.images": {**COUNT, "or_null": True, "when": [KNOWING]},
    "model.name": {"kind": "text"},
    "model.architecture": {"kind": "text"},
    "model.pretrained": TEXT,
    "model.backbone": {"kind": "anything"},
    "model.backbone.*": {"kind": "anything"},
    "model.tokenizer.*": {"kind": "anything"},
    "data._target_": {"kind": "text"},
    "model.grad_checkpointing": {**FLAG, "by": "method"},
    "model.recipe.threads": {**COUNT, "or_null": True},
    "model.recipe.*": {"kind": "anything", "when": []},  # matters where another setting takes its value from it
    "data.root": TEXT,
    "data.batch_size": {**COUNT, "when": [TRAINS]},
    "data.eval_batch_size": COUNT,
    "data.holdout": {**NO_NEGATIVE, "or_null": True},
    "data.holdout_seed": {**NO_NEGATIVE, "or_null": True, "when": [HOLDOUT]},
    "data.eval_images": {**COUNT, "or_null": True},
    "data.num_workers": {**NO_NEGATIVE, "or_null": True},
    "data.validate": {"of": ["holdout", "all"], "when": [TRAINS]},
    "trainer.accelerator": {"of": ["auto", "cpu", "gpu", "cuda", "mps"]},
    # Others split the model, or start processes that the evaluation after training is not part of.
    "trainer.strategy": {
        "any": [{"of": ["auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"]}],
        "words": "{}: others do not work with two backward passes a step, or lose their results",
    },
    "trainer.devices": {"kind": "devices"},
    "trainer.num_nodes": COUNT,
    "trainer.precision": {"of": ["auto", "32-true", "bf16-mixed", "16-mixed", 32, "32", "bf16", 16, "16"]},
    "trainer.fast_dev_run": {"any": [FLAG, COUNT]},
    "trainer.max_epochs": {**COUNT, "or_null": True, "when": [LONG]},
    "trainer.min_epochs": {**COUNT, "or_null": True, "when": [TIMED]},
    "trainer.max_steps": {"any": [COUNT, {"of": [-1]}], "words": "{}, or -1 for no limit", "when": [LONG]},
    "trainer.min_steps": {**COUNT, "or_null": True, "when": [TIMED]},
    "trainer.max_time": {
        "match": r"(?=.*[1-9])\d+:([01]\d|2[0-3]):[0-5]\d:[0-5]\d",
        **{"words": "a time above 0 as days:hours:minutes:seconds, 00:12:00:00", "or_null": True, "when": [LONG]},
    },
    "trainer.limit_train_batches": {**BATCHES, "when": [LONG]},
    "trainer.limit_val_batches": {**BATCHES, "when": [WHOLE_RUN]},
    "trainer.val_check_interval": {**BATCHES, "when": SCORED},
    "trainer.check_val_every_n_epoch": {**COUNT, "when": SCORED},
    "trainer.log_every_n_steps": {**COUNT, "when": [TRAINS]},
    "trainer.enable_checkpointing": {**FLAG, "or_null": True, "when": [LEAVES]},
    "trainer.enable_progress_bar": FLAG,
    "trainer.enable_model_summary": {**FLAG, "when": [TRAINS]},
    "trainer.accumulate_grad_batches": {"any": [COUNT, {"of": ["auto"]}], "when": [TRAINS]},
    "trainer.gradient_clip_val": {"above": 0, "or_null": True, "when": [TRAINS]},
    "trainer.gradient_clip_algorithm": {
        "of": ["norm", "value"],
        "when": [{**TRAINS, "trainer.gradient_clip_val": {"above": 0}}],
    },
    "trainer.deterministic": {"any": [FLAG, {"of": ["warn"]}], "or_null": True},
    "trainer.benchmark": {
        **{**FLAG, "or_null": True},
        "when": [
            {"trainer.accelerator": {"of": ["auto", "gpu", "cuda"]}, "trainer.deterministic": {"of": [None, False]}}
        ],
    },
    "trainer.profiler": {"of": ["simple", "advanced", "pytorch"], "or_null": True},
    "trainer.detect_anomaly": {**FLAG, "when": [TRAINS]},
    "logger.wandb.project": {"kind": "text"},
    "logger.wandb.entity": TEXT,
    "logger.wandb.offline": {**FLAG, "or_null": True},
    "logger.wandb.group": TEXT,
    "logger.wandb.job_type": TEXT,
    "logger.wandb.tags": {"kind": "texts", "or_null": True},
    "logger.wandb.log_model": {**FLAG, "when": [{"trainer.enable_checkpointing": {"of": [True]}, **LEAVES}]},
}

# What is there to read and not to set.
CHOSEN = {
    "method.name": "choose the method by its group: method=NAME",
    "mask.kind": "choose the mask by its group: mask=NAME",
    "fill.kind": "choose the fill by its group: fill=NAME",
    "recipe.name": "choose the recipe by its group: recipe=NAME",
    "schedule.name": "choose the schedule by its group: schedule=NAME",
    "moving.name": "choose how an average moves by its group: moving=NAME",
    "train.name": "choose what is trained by its group: train=NAME",
    "augment.kind": "choose the augmentation by its group: augment=NAME",
    "retain": "each task has a name of your own: retain.NAME=DIR",
}
# What could be expected to be a setting, and why it is none.
REFUSED = {
    "optimizer.betas": "the first is cycled by the schedule: set optimizer.base_momentum and optimizer.max_momentum,"
    " and optimizer.beta2 for the second",
    "trainer.logger": "loggers are chosen by their group: logger=csv, wandb or none",
    "trainer.callbacks": "callbacks are objects, which cannot be typed",
    "trainer.default_root_dir": "a run's folder is chosen with hydra.run.dir=DIR",
    "trainer.limit_test_batches": "there is no test loop: validation goes through all sets, trainer.limit_val_batches",
    "trainer.limit_predict_batches": "there is no prediction loop: predictions come with the evaluation",
    "trainer.overfit_batches": "it would train on the hold-out; use trainer.limit_train_batches",
    "trainer.num_sanity_val_steps": "the zero-shot evaluation goes through every set before training begins",
    "trainer.inference_mode": "evaluations need no gradients either way, and maps get theirs",
    "trainer.use_distributed_sampler": "the samplers here share images out to devices, none twice and none left out",
    "trainer.barebones": "it would switch off what a run leaves; trainer.enable_progress_bar=false logger=none is near",
    "trainer.plugins": "plugins are objects, which cannot be typed; use trainer.precision and trainer.strategy",
    "trainer.sync_batchnorm": "transformers have no batch normalisation; of ResNets each device has its own statistics",
    "trainer.reload_dataloaders_every_n_epochs": "the order of images is a function of seed and epoch as it is",
    "trainer.enable_autolog_hparams": "all settings are logged by the run itself",
    "trainer.model_registry": "models stay in the run's folder; for W&B use logger.wandb.log_model=true",
}


def spelled(name: str) -> str | None:
    """Spell out the name of a setting of something that the user names: retain.pets is retain.pets.path.

    None where nothing of the core takes such names, or it has no such setting.
    """
    parts = name.split(".")
    keys = [key.rpartition(".")[2] for key in CORE if key.startswith(f"{parts[0]}.*.")]
    if not keys or len(parts) not in (2, 3) or not parts[1]:
        return None
    last = parts[2] if len(parts) == 3 else keys[0]
    return f"{parts[0]}.{parts[1]}.{last}" if last in keys else None
