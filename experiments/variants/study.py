"""What the cheaper variants of the step do to accuracy: five seeds, paired differences to the exact step.

    python experiments/variants/study.py

Their cost is measured apart from this: python -m robustft.bench --model tiny --batch 32 --more last_layer no_fill
"""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from robustft.studies.main import main, tables
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(1, 6)
OURS = ("mask=object", "fill=single")
VARIANTS = {
    "exact": OURS,
    "teacher_maps": (*OURS, "mask.source=teacher"),
    "last_layer": (*OURS, "mask.layers=1"),
    "last_two_layers": (*OURS, "mask.layers=2"),
    "gradcam": (*OURS, "mask.cam=gradcam"),
    "random_no-fill": ("mask=random", "fill=none", "mask.rate=0.5"),
}


def entries(cfg: DictConfig) -> Iterator[Entry]:
    for seed in SEEDS:
        for name, settings in VARIANTS.items():
            yield Entry(f"{name}_seed-{seed}", (*settings, f"seed={seed}"))


def summarise(folder: Path, results: Results) -> None:
    """comparison.md (.csv, .tex) and scatter.png, with differences to the exact step paired by seed."""
    tables(folder, results, baselines=["exact_seed-1"])


if __name__ == "__main__":
    main(__file__, entries, summarise)
