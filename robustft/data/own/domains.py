"""`data=domains`: DomainBed's layout, `root/domain/class/image`; some domains train, others are the shifts."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustft.common.errors import UserError
from robustft.common.paths import expand
from robustft.common.wording import some
from robustft.data.own.collection import Found, OwnImages
from robustft.data.own.listing import Listing, drawn, joined, scan
from robustft.data.walk import folders_in

log = logging.getLogger(__name__)


class DomainImages(OwnImages):
    """Images of several domains, a folder each, with the same class folders in all of them.

    With `source` the others are shifts, whole; of the sources `val_share` is the ID set. With `target` it is done as in
    DomainBed (Gulrajani and Lopez-Paz, ICLR 2021): of every domain `val_share` is set aside; of the sources that is
    hold-out and ID set, and what is left of the target is the shift.

    Args:
        root: the folder with the domains.
        source: a domain, or several, to train on; None: all but the target.
        target: the domain to report as shift.
        options: of all data of a user's own, see `OwnImages`.
    """

    name = "domains"

    def __init__(
        self, *, root: str, source: str | Sequence[str] | None = None, target: str | None = None, **options: Any
    ) -> None:
        super().__init__(root=root, **options)
        self.source = [source] if isinstance(source, str) else None if source is None else list(source)
        self.target = target

    def look(self) -> Found:
        folder = expand(str(self.root))
        domains = self._domains(folder)
        if self.source is None and self.target is None:
            raise UserError(
                f"data=domains: say which domains to train on (data.source={domains[0]}, or a list), or which one is"
                f" left for the end (data.target={domains[-1]}). There are {', '.join(domains)}"
            )
        if twice := [name for name, count in Counter(self.source or []).items() if count > 1]:
            raise UserError(f"data.source: {twice[0]} is named twice, and its images would be in training twice")
        for setting, names in (("source", self.source or []), ("target", [self.target] if self.target else [])):
            for name in names:
                if name not in domains:
                    near = difflib.get_close_matches(name, domains, n=1, cutoff=0.4)
                    hint = f" Did you mean {near[0]}?" if near else ""
                    raise UserError(f"data.{setting}={name}: no such domain.{hint} There are {', '.join(domains)}")
        sources = [name for name in domains if name != self.target] if self.source is None else self.source
        if self.target in sources:
            raise UserError(f"data.target={self.target} is one of data.source: a domain cannot be both")
        train = joined([self._scan(folder, name) for name in sources], sources)
        if self.target is not None:
            return Found(train, None, {self.target: self._left(self._scan(folder, self.target))}, selects_on_val=True)
        rest = [name for name in domains if name not in sources]
        return Found(train, None, {name: self._scan(folder, name) for name in rest})

    def _domains(self, folder: Path) -> list[str]:
        place = None if self.place is None else os.path.realpath(self.place)
        found = [name for name in folders_in(folder) if os.path.realpath(folder / name) != place]
        if len(found) < 2:
            there = some(found) or "no folder"
            raise UserError(f"data.root={folder}: expected a folder for each of two domains or more, found {there}")
        return found

    def _scan(self, folder: Path, domain: str) -> Listing:
        return scan(folder / domain, f"data.root={folder}: the domain {domain}", root=folder)

    def _left(self, listing: Listing) -> Listing:
        """What is left of the target when its share is set aside."""
        labels = listing.labels(sorted(set(listing.classes)))
        aside = drawn("val", labels, listing.keys(), round(self.val_share * len(listing)), self.val_seed)
        return listing.select((~aside).nonzero().flatten().tolist())
