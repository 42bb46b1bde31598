"""Learning rate and length of the linear probe on the embedded benchmark (``model.recipe.probe``).

    python experiments/probe/study.py

By the hold-out, on other seeds (from 100) and another draw of the images (data.data_seed=1000) than every reported
number.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from omegaconf import DictConfig

from robustft.common.files import write
from robustft.evaluation.summary import percent
from robustft.studies.main import main
from robustft.studies.store import Results
from robustft.studies.study import Entry

SEEDS = range(100, 103)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
EPOCHS = (5, 10, 20)


def name(rate: float, epochs: int, seed: int) -> str:
    return f"lr-{rate}_epochs-{epochs}_seed-{seed}"


def entries(_: DictConfig) -> Iterator[Entry]:
    for rate in RATES:
        for epochs in EPOCHS:
            for seed in SEEDS:
                settings = (f"optimizer.lr={rate}", f"trainer.max_epochs={epochs}", f"seed={seed}")
                yield Entry(name(rate, epochs, seed), ("method=linear_probe", "data.data_seed=1000", *settings))


def summarise(folder: Path, results: Results) -> None:
    """probe.md: top-1 and negative log-likelihood on the hold-out, means over seeds, for each rate and length."""

    def cell(rate: float, epochs: int) -> str:
        found = [results[name(rate, epochs, seed)]["holdout"] for seed in SEEDS]
        return f"{percent(mean(score['top1'] for score in found))}, {mean(score['nll'] for score in found):.3f}"

    rows = [["lr", *(f"{epochs} epochs" for epochs in EPOCHS)], ["---:"] * (1 + len(EPOCHS))]
    rows += [[f"{rate}", *(cell(rate, epochs) for epochs in EPOCHS)] for rate in RATES]
    write(folder / "probe.md", "".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main(__file__, entries, summarise)
