"""The paper's table on the embedded benchmark: every system, five seeds.

    python experiments/comparison/study.py

The same on other models and data, with the published numbers beside it:

    python experiments/comparison/study.py --jobs 1 model=vitb32 data.root=DIR
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.report.published import beside, read
from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(1, 6)
# The members of a seed's soup: factors of the recipe's learning rate, weight decay and epochs.
MEMBERS = [(lr, decay, epochs) for lr in (0.5, 1, 2) for decay, epochs in ((1, 1), (0.1, 1), (1, 0.6))]
TRAINED = {
    "linear_probe": ("method=linear_probe",),
    "lpft": ("method=lpft",),
    "distillation": ("mask=none",),
    "kd_factual": ("method=kd",),
    "kd_counterfactual": ("method=kd", "mask=object", "fill=single"),
    "object_multi": ("mask=object", "fill=multi", "mask.threshold=0.6"),
}


def entries(cfg: DictConfig) -> Iterator[Entry]:
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in SEEDS:
        here = f"seed={seed}"
        vanilla, single = f"vanilla_seed-{seed}", f"object_single_seed-{seed}"
        yield Entry(vanilla, ("method=finetune", here), keep=True)
        yield Entry(single, ("mask=object", "fill=single", here), keep=True)
        for name, settings in TRAINED.items():
            yield Entry(f"{name}_seed-{seed}", (*settings, here))
        members = []
        for number, (lr, decay, epochs) in enumerate(MEMBERS):
            if lr == decay == epochs == 1:
                members.append(vanilla)
                continue
            members.append(f"member-{number}_seed-{seed}")
            settings = (
                "method=finetune",
                here,
                f"data.holdout_seed={seed}",
                f"optimizer.lr={cfg.optimizer.lr * lr}",
                f"optimizer.weight_decay={cfg.optimizer.weight_decay * decay}",
                f"trainer.max_epochs={max(1, round(cfg.trainer.max_epochs * epochs))}",
            )
            yield Entry(members[-1], settings, keep=True)
        checkpoints = f"checkpoints=[{','.join(f'{{{member}}}' for member in members)}]"
        yield Entry(f"soup_uniform_seed-{seed}", ("method=soup", checkpoints, here))
        yield Entry(f"soup_greedy_seed-{seed}", ("method=soup", "method.greedy=true", checkpoints, here))
        yield Entry(f"wiseft_seed-{seed}", ("method=wiseft", f"checkpoint={{{vanilla}}}", here))
        yield Entry(f"wiseft_counterfactual_seed-{seed}", ("method=wiseft", f"checkpoint={{{single}}}", here))


def summarise(folder: Path, results: Results) -> None:
    """comparison.md (.csv, .tex) and scatter.png, with paired differences to vanilla and to WiSE-FT; published.md."""
    baselines = [f"{system}_seed-{SEEDS[0]}" for system in ("vanilla", "wiseft")]
    tables(folder, results, baselines=baselines, leave_out="member")
    published = beside(results, read(Path(__file__).parent / "published.csv"))
    if published is not None:
        write(folder / "published.md", published)


if __name__ == "__main__":
    main(__file__, entries, summarise)
