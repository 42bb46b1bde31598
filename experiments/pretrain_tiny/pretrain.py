"""Pre-train the tiny CLIP on captioned scenes and write its weights into the package.

    python experiments/pretrain_tiny/pretrain.py                        # the shipped weights; again: goes on with it
    python experiments/pretrain_tiny/pretrain.py --steps 50 --images 1024 --out DIR    # a short look

Class, context, colour and style are drawn independently of each other (`recipes.PRETRAINING`).
Loss: 0.5 * CLIP's contrastive loss over image and caption + 1.0 * cross-entropy against the class prompts.
Nothing depends on the time that passes, and each step has random streams of its own: the same arguments give the same
curve, also when a run was stopped or killed in between.
"""

import argparse
import csv
import math
import sys
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import save_file

from robustft.common import entry, paths
from robustft.common.errors import UserError
from robustft.common.files import atomic
from robustft.common.randomness import generator, seeded
from robustft.data.scenes.cache import cached
from robustft.data.scenes.captions import TASKS, TEMPLATES, captions
from robustft.data.scenes.datamodule import EVALUATION_SETS
from robustft.data.scenes.generate import generate
from robustft.data.scenes.recipes import CLASSES, PRETRAINING, SETS
from robustft.models import tiny
from robustft.models.plain import PlainTower

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIZE, SHIFT, EVERY = 64, 4, 50
WARMUP = 450  # steps
DEVELOPMENT_SEED = 1000  # a draw of the evaluation sets that is not reported
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN)[:, None, None]
STD = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]


def normalised(images):
    return (images / 255 - MEAN) / STD


def augmented(images, random):
    """Flipped in half of the cases and moved by up to SHIFT pixels, edges repeated."""
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=random).tolist()
    flips = (torch.rand(len(images), generator=random) < 0.5).tolist()
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
    """Warm-up over WARMUP steps, then constant, then linearly to 0 over the last 60%."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (0.6 * steps))


@torch.no_grad()
def zero_shot(model, count):
    """Accuracy of the prompt-ensembled zero-shot head on each evaluation set's development draw, then on the tasks
    that training never asks for."""
    model.eval()

    def features(scenes):
        return torch.cat([model.encode_image(normalised(batch), normalize=True) for batch in scenes.images.split(100)])

    def accuracy(features, labels, names, templates):
        head = open_clip.build_zero_shot_classifier(model, tiny.tokenizer(), names, templates)
        return ((features @ head).argmax(1) == labels).double().mean().item()

    found = {}
    for name in EVALUATION_SETS:
        scenes = generate(SETS[name], count, size=SIZE, seed=DEVELOPMENT_SEED, name=name)
        found[name] = accuracy(features(scenes), scenes.labels, CLASSES, TEMPLATES)
    scenes = generate(PRETRAINING, count, size=SIZE, seed=DEVELOPMENT_SEED, name="retention")
    encoded = features(scenes)
    for task, labels in (("context", scenes.contexts), ("style", scenes.styles)):
        found[task] = accuracy(encoded, labels, *TASKS[task])
    return found


def step_losses(model, tower, tokenizer, scenes, batch, random):
    """Contrastive loss, class loss and class accuracy of a batch. One template a class, drawn anew."""
    images = F.normalize(tower.encode(normalised(augmented(scenes.images[batch], random))), dim=-1)
    texts = captions(scenes, batch.tolist(), random)
    templates = torch.randint(0, len(TEMPLATES), (len(CLASSES),), generator=random).tolist()
    prompts = [TEMPLATES[template].format(name) for template, name in zip(templates, CLASSES, strict=True)]
    encoded = model.encode_text(tokenizer(texts + prompts), normalize=True)
    scale = model.logit_scale.exp()
    pairs = scale * images @ encoded[: len(texts)].T
    same = torch.arange(len(batch))
    contrastive = (F.cross_entropy(pairs, same) + F.cross_entropy(pairs.T, same)) / 2
    logits = scale * images @ encoded[len(texts) :].T
    labels = scenes.labels[batch]
    return contrastive, F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()


class Training:
    """The model, its optimisers and how far they are; ``save`` and ``load`` carry all of it.

    Attributes:
        rows: the curve: step, and the means of both losses and of the class accuracy since the row before.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        tiny.register()
        with seeded("weights of the tiny CLIP", arguments.seed):
            self.model = open_clip.create_model(tiny.ARCHITECTURE, load_weights=False).train()
        self.tower, self.tokenizer = PlainTower(self.model.visual), tiny.tokenizer()
        self.optimisers = optimisers(self.model, arguments.lr_matrices, arguments.lr_rest)
        self.peaks = [group["lr"] for group in self.groups()]
        self.step, self.rows, self.recent = 0, [], []

    def groups(self):
        """The optimisers' groups of parameters, which have learning rates of their own."""
        return [group for optimiser in self.optimisers for group in optimiser.param_groups]

    @property
    def settings(self):
        """What the curve depends on."""
        return {k: getattr(self.arguments, k) for k in SETTINGS}

    def save(self, path):
        state = {
            "settings": self.settings, "step": self.step, "rows": self.rows, "recent": self.recent,
            "model": self.model.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers],
        }  # fmt: skip
        with atomic(path) as partial:
            torch.save(state, partial)

    def load(self, path):
        """Raises UserError where the state is that of other settings."""
        state = torch.load(path, weights_only=True)
        if state["settings"] != self.settings:
            raise UserError(f"{path} is of a pre-training with {state['settings']}: remove it, or give another --work.")
        self.step, self.rows, self.recent = state["step"], state["rows"], state["recent"]
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def one_step(self, scenes):
        """An optimiser step; every EVERY steps a row of the curve, which is returned."""
        arguments, step = self.arguments, self.step
        epoch, place = divmod(step, arguments.images // arguments.batch_size)
        order = torch.randperm(arguments.images, generator=generator("pre-training order", arguments.seed, epoch))
        batch = order[place * arguments.batch_size :][: arguments.batch_size]
        for group, lr in zip(self.groups(), self.peaks, strict=True):
            group["lr"] = lr * schedule(step, arguments.steps)
        random = generator("pre-training step", arguments.seed, step)
        losses = step_losses(self.model, self.tower, self.tokenizer, scenes, batch, random)
        (0.5 * losses[0] + losses[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        self.recent.append(torch.stack(losses).detach())
        if self.step % EVERY and self.step < arguments.steps:
            return None
        self.rows.append([self.step, *torch.stack(self.recent).mean(0).tolist()])
        self.recent = []
        return self.rows[-1]


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


SETTINGS = ("steps", "images", "batch_size", "lr_matrices", "lr_rest", "seed", "threads")


def parsed(typed=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr-matrices", type=float, default=4e-3, help="Muon")
    parser.add_argument("--lr-rest", type=float, default=1.5e-3, help="AdamW")
    parser.add_argument("--seed", type=int, default=2000, help="of the images, the weights and the order")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until", type=int, help="stop at this step; the same command without it goes on")
    parser.add_argument("--save-minutes", type=float, default=5, help="how often the state is kept")
    parser.add_argument("--out", type=paths.expand, help="folder for weights and curve instead of the package's")
    parser.add_argument("--work", type=paths.expand, default=ROOT / "runs" / "pretrain_tiny",
                        help="folder for the rendered images and the state to go on from")  # fmt: skip
    return parser.parse_args(typed)


def main():
    arguments = parsed()
    weights = arguments.out / "tiny.safetensors" if arguments.out else tiny.WEIGHTS
    curve = (arguments.out or HERE) / "curve.csv"
    paths.make_folder(curve.parent, "--out")
    paths.make_folder(arguments.work, "--work")
    state = arguments.work / "state.pt"

    torch.set_num_threads(arguments.threads)
    training = Training(arguments)
    if state.exists():
        training.load(state)
        print(f"going on after {training.step} steps")
    scenes = cached(
        PRETRAINING, arguments.images, size=SIZE, seed=arguments.seed, name="pretraining", folder=arguments.work
    )
    start = saved = time.perf_counter()
    end = min(arguments.until or arguments.steps, arguments.steps)
    with Progress() as progress:
        task = progress.add_task("training", total=arguments.steps)
        while training.step < end:
            if row := training.one_step(scenes):
                write_curve(training.rows, curve)
                progress.update(task, completed=row[0], description=f"training, class loss {row[2]:.2f}")
            if time.perf_counter() - saved > 60 * arguments.save_minutes or training.step == end:
                training.save(state)
                saved = time.perf_counter()
    if training.step < arguments.steps:
        print(f"stopped after {training.step} steps: repeat the command to go on")
        return

    with atomic(weights) as partial:
        save_file({name: tensor.half().contiguous() for name, tensor in training.model.state_dict().items()}, partial)
    print(f"{time.perf_counter() - start:.0f} s, {weights}")
    plot(training.rows, curve.with_suffix(".png"))
    for name, accuracy in zero_shot(training.model, 2000).items():
        print(f"{name:18s}{100 * accuracy:5.1f}%")


if __name__ == "__main__":
    sys.exit(entry.answer(main))
