"""What the zero-shot model of the embedded benchmark does without any training, on draws that nothing else reports.

    python experiments/targets/measure.py      # measured.json, of which study.py makes its table

How often the largest relevance of an image is on its object, by set; and the accuracy on two tasks that no fine-tuning
asks for, the context and the style of a scene.
"""

import json
import sys
from pathlib import Path

import open_clip
import torch

from robustft.common import entry
from robustft.common.files import write
from robustft.counterfactual.cam import relevance
from robustft.counterfactual.true_maps import patch_coverage
from robustft.data.scenes import ScenesData
from robustft.data.scenes.retention import retention_task
from robustft.evaluation.localisation import localise
from robustft.models import tiny
from robustft.models.weights import create_clip
from robustft.models.zeroshot import zeroshot_classifier

DRAWS = (1000, 1001)
BATCH = 100


def pointing(draw):
    """By set, the share of the images whose largest relevance, of the true class, is on the object."""
    model = zeroshot_classifier(
        tiny.ARCHITECTURE, "embedded", ScenesData.class_names, ScenesData.templates, tokenizer=tiny.tokenizer()
    )
    data = ScenesData(
        preprocess=model.preprocess, seed=0, batch_size=1, eval_batch_size=BATCH, holdout=0, data_seed=draw
    )
    data.setup()
    found = {}
    for evaluation_set in data.sets:
        maps = []
        for indices in torch.arange(len(evaluation_set.dataset)).split(BATCH):
            batch = evaluation_set.dataset.__getitems__(indices.tolist())
            maps.append(relevance(model, model.preprocess.normalise(batch.images), batch.labels)[-1].detach())
        coverage = patch_coverage(evaluation_set.dataset.masks, model.grid)
        found[evaluation_set.name] = localise(torch.cat(maps), coverage).pointing
    return found


@torch.inference_mode()
def accuracy(task, draw):
    clip = create_clip(tiny.ARCHITECTURE, "embedded", 0).eval()
    model = zeroshot_classifier(
        tiny.ARCHITECTURE, "embedded", ScenesData.class_names, ScenesData.templates, tokenizer=tiny.tokenizer()
    )
    asked = retention_task(task, model.preprocess.size, data_seed=draw)
    head = open_clip.build_zero_shot_classifier(clip, tiny.tokenizer(), asked.class_names, asked.templates)
    right = 0.0
    for indices in torch.arange(len(asked.images.dataset)).split(BATCH):
        batch = asked.images.dataset.__getitems__(indices.tolist())
        features = clip.encode_image(model.preprocess.normalise(batch.images), normalize=True)
        right += ((features @ head).argmax(1) == batch.labels).sum().item()
    return right / len(asked.images.dataset)


def main():
    found = {
        draw: {"pointing": pointing(draw), **{task: accuracy(task, draw) for task in ("context", "style")}}
        for draw in DRAWS
    }
    text = json.dumps(found, indent=2)
    write(Path(__file__).with_name("measured.json"), text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(entry.answer(main))
