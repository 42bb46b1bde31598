"""Pre-train the tiny CLIP on captioned scenes and write its weights into the package.

    python experiments/pretrain_tiny/pretrain.py                        # the shipped weights
    python experiments/pretrain_tiny/pretrain.py --steps 50 --out DIR   # a short look; shipped weights stay

Class, context, colour and style are drawn independently of each other (`recipes.PRETRAINING`).
Loss: 0.5 * CLIP's contrastive loss over image and caption + 1.0 * cross-entropy against the class prompts.
Nothing depends on the time that passes: the same arguments give the same curve.
"""

import argparse
import csv
import math
import os
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import save_file

from robustft.common import entry, paths
from robustft.data.scenes.captions import TEMPLATES, captions
from robustft.data.scenes.datamodule import EVALUATION_SETS
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import CLASSES, PRETRAINING, SETS
from robustft.models import tiny

HERE = Path(__file__).parent
SIZE, SHIFT, EVERY = 48, 3, 50
DEVELOPMENT_SEED = 1000  # a draw of the evaluation sets that is not reported
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
STD = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]


def normalised(images):
    return (images / 255 - MEAN) / STD


def augmented(images, generator):
    """Flipped in half of the cases and moved by up to SHIFT pixels, edges repeated."""
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    rows = [image[:, y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(padded, moves, strict=True)]
    return torch.stack([row.flip(-1) if flip else row for row, flip in zip(rows, flips, strict=True)])


def optimisers(model, lr_matrices, lr_rest):
    """Muon for the matrices inside the transformer blocks, AdamW for everything else."""
    parameters = list(model.named_parameters())
    inside = [p for name, p in parameters if "resblocks" in name and p.ndim == 2]
    decayed = [p for name, p in parameters if not ("resblocks" in name and p.ndim == 2) and p.ndim > 1]
    plain = [p for _, p in parameters if p.ndim <= 1]
    return [
        torch.optim.Muon(inside, lr=lr_matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
            lr=lr_rest, betas=(0.9, 0.98),
        ),
    ]  # fmt: skip


def schedule(step, steps):
    """Warm-up over 5% of the steps, then constant, then linearly to 0 over the last 60%."""
    return min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.6 * steps))


@torch.no_grad()
def zero_shot(model, count):
    """Accuracy of the prompt-ensembled zero-shot head on each evaluation set's development draw."""
    model.eval()
    head = open_clip.build_zero_shot_classifier(model, tiny.tokenizer(), CLASSES, TEMPLATES)
    accuracy = {}
    for name in EVALUATION_SETS:
        scenes = generate(SETS[name], count, size=SIZE, seed=DEVELOPMENT_SEED, name=name)
        features = [model.encode_image(normalised(batch), normalize=True) for batch in scenes.images.split(500)]
        accuracy[name] = ((torch.cat(features) @ head).argmax(1) == scenes.labels).double().mean().item()
    return accuracy


def step_losses(model, tokenizer, scenes, batch, generator):
    """Contrastive loss, class loss and class accuracy of a batch. One template a class, drawn anew."""
    images = model.encode_image(normalised(augmented(scenes.images[batch], generator)), normalize=True)
    texts = captions(scenes, batch.tolist(), generator)
    templates = torch.randint(0, len(TEMPLATES), (len(CLASSES),), generator=generator).tolist()
    prompts = [TEMPLATES[template].format(name) for template, name in zip(templates, CLASSES, strict=True)]
    encoded = model.encode_text(tokenizer(texts + prompts), normalize=True)
    scale = model.logit_scale.exp()
    pairs = scale * images @ encoded[: len(texts)].T
    same = torch.arange(len(batch))
    contrastive = (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.T, same)) / 2
    logits = scale * images @ encoded[len(texts) :].T
    labels = scenes.labels[batch]
    return contrastive, F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()


def train(model, scenes, arguments, report):
    """Runs the schedule; every EVERY steps `report` gets the means of both losses and the accuracy since."""
    tokenizer = tiny.tokenizer()
    generator = torch.Generator().manual_seed(arguments.seed)
    both = optimisers(model, arguments.lr_matrices, arguments.lr_rest)
    groups = [(group, group["lr"]) for optimiser in both for group in optimiser.param_groups]
    order = torch.empty(0, dtype=torch.long)
    recent = []
    for step in range(arguments.steps):
        if len(order) < arguments.batch_size:
            order = torch.randperm(len(scenes.labels), generator=generator)
        batch, order = order[: arguments.batch_size], order[arguments.batch_size :]
        for group, lr in groups:
            group["lr"] = lr * schedule(step, arguments.steps)
        contrastive, classes, accuracy = step_losses(model, tokenizer, scenes, batch, generator)
        (0.5 * contrastive + classes).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        recent.append(torch.stack([contrastive, classes, accuracy]).detach())
        if (step + 1) % EVERY == 0 or step + 1 == arguments.steps:
            report(step + 1, torch.stack(recent).mean(0).tolist())
            recent.clear()


def write_curve(rows, path):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "contrastive_loss", "class_loss", "class_accuracy"])
        table.writerows([[row[0], *(f"{value:.6f}" for value in row[1:])] for row in rows])


def plot(rows, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, contrastive, classes, accuracy = zip(*rows, strict=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(steps, contrastive, label="contrastive")
    left.plot(steps, classes, label="class prompts")
    left.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    left.legend(frameon=False)
    right.plot(steps, accuracy, color="tab:green")
    right.set(xlabel="step", ylabel="training accuracy, class prompts", ylim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr-matrices", type=float, default=4e-3, help="Muon")
    parser.add_argument("--lr-rest", type=float, default=1.5e-3, help="AdamW")
    parser.add_argument("--seed", type=int, default=2000, help="of the images, the weights and the order")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=paths.expand, help="folder for weights and curve instead of the package's")
    arguments = parser.parse_args()
    weights = arguments.out / "tiny.safetensors" if arguments.out else tiny.WEIGHTS
    curve = (arguments.out or HERE) / "curve.csv"
    paths.make_folder(curve.parent, "--out")

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tiny.register()
    model = open_clip.create_model(tiny.ARCHITECTURE, load_weights=False).train()
    start, rows = time.perf_counter(), []
    with Progress() as progress:
        rendering = progress.add_task("rendering", total=arguments.images)
        scenes = generate(
            PRETRAINING, arguments.images, size=SIZE, seed=arguments.seed, name="pretraining",
            progress=lambda done: progress.update(rendering, completed=done),
        )  # fmt: skip
        training = progress.add_task("training", total=arguments.steps)

        def report(step, means):
            rows.append([step, *means])
            write_curve(rows, curve)
            progress.update(training, completed=step, description=f"training, class loss {means[1]:.2f}")

        train(model, scenes, arguments, report)

    part = weights.with_suffix(".part")
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, part)
    os.replace(part, weights)
    print(f"{time.perf_counter() - start:.0f} s, {weights}")
    plot(rows, curve.with_suffix(".png"))
    for name, accuracy in zero_shot(model, 1000).items():
        print(f"{name:18s}{100 * accuracy:5.1f}%")


if __name__ == "__main__":
    sys.exit(entry.answer(main))
