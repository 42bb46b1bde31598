"""ObjectNet (Barbu et al., NeurIPS 2019): which ImageNet classes are right for which of its folders.

The data set has 313 classes in `images/<folder>/`; 113 of them correspond to one or more ImageNet classes and
are evaluated, the others are passed over. Its own `mappings/` folder says which. Every image carries a red
frame, 2 pixels wide, that must be cut off before the transform.
"""

import json
from pathlib import Path

from robustft.common.errors import UserError

BORDER = 2


def read_label_sets(mappings: Path) -> tuple[dict[str, list[int]], list[str]]:
    """The mapping of ObjectNet as distributed.

    Returns:
        the right ImageNet classes (position in the order of the WordNet ids) for each folder evaluated, and
        the other folders of the data set.

    Raises:
        UserError: a file of the mapping is missing or is not what it should be.
    """
    try:
        folder_to_label = json.loads((mappings / "folder_to_objectnet_label.json").read_text())
        label_to_names = json.loads((mappings / "objectnet_to_imagenet_1k.json").read_text())
        class_to_2012 = json.loads((mappings / "pytorch_to_imagenet_2012_id.json").read_text())
        names_2012 = (mappings / "imagenet_to_label_2012_v2").read_text().splitlines()
        # The class names are listed in the order of the 2012 development kit.
        class_of_2012 = {position: int(k) for k, position in class_to_2012.items()}
        class_of_name = {name.strip(): class_of_2012[i] for i, name in enumerate(names_2012)}
        right = {
            folder: sorted(class_of_name[name] for name in label_to_names[label].split("; "))
            for folder, label in folder_to_label.items()
            if label in label_to_names
        }
    except FileNotFoundError as error:
        raise UserError(
            f"ObjectNet: {error.filename} is missing. The folder mappings/ comes with the data set and "
            "belongs beside images/."
        ) from error
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"ObjectNet: the files in {mappings} do not fit together ({error!r}). "
            "Take mappings/ from the data set as distributed."
        ) from error
    return dict(sorted(right.items())), [folder for folder in folder_to_label if folder not in right]
