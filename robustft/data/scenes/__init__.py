"""The embedded benchmark: rendered scenes, a class-context correlation, five distribution shifts.

`docs/scenes.md` says what differs between the sets. From the bottom up: `shapes` (the objects), `contexts`
(the backgrounds), `recipes` (the distribution of each set, and a draw from it), `styles` (sketches and renditions),
`render` (a draw to pixels), `generate` (whole sets), `cache` (on disk), `datamodule` (for training), `captions` (what
is said about it), `retention` (what else it shows).
"""

from robustft.data.scenes.datamodule import ScenesData

__all__ = ["ScenesData"]
