"""The seeds table of the embedded benchmark: zero-shot, vanilla fine-tuning, distillation with and without masks."""

from robustft.study import Entry, main

SEEDS = range(1, 6)
BETAS = (0.3, 1, 3)


def entries():
    yield Entry("zeroshot", ("method=zeroshot",))
    for seed in SEEDS:
        yield Entry(f"vanilla_seed{seed}", ("method=finetune", f"seed={seed}"))


if __name__ == "__main__":
    main(__file__, entries(), lambda folder, results: print(len(results)))
