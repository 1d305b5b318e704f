"""Which families each split draws from; the two splits share none."""

from __future__ import annotations

from dataclasses import dataclass

from palestra.tasks.katas.callers import HELDOUT_CALLERS, TRAIN_CALLERS, CallerFamily
from palestra.tasks.katas.families_heldout import HELDOUT_COLLECTIONS, HELDOUT_SCALARS
from palestra.tasks.katas.families_level0 import HELDOUT_LEVEL0, TRAIN_LEVEL0
from palestra.tasks.katas.families_train_collections import TRAIN_COLLECTIONS
from palestra.tasks.katas.families_train_numbers import TRAIN_NUMBERS
from palestra.tasks.katas.families_train_text import TRAIN_TEXT
from palestra.tasks.katas.family import Bug, Family
from palestra.tasks.katas.spec import Split

# Level → the tiers of the bugs that it draws from.
_TIERS = {0: (0,), 1: (1,), 2: (2,), 3: (1, 2), 4: (4,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What one split draws from."""

    level0: tuple[Family, ...]
    families: tuple[Family, ...]
    callers: tuple[CallerFamily, ...]
    modules: tuple[str, ...]

    def functions(self, level: int) -> tuple[Family, ...]:
        """The families of ``level``, with or without a bug there."""
        return self.level0 if level == 0 else self.families

    def targets(self, level: int) -> tuple[tuple[Family, tuple[Bug, ...]], ...]:
        """The families that have bugs for ``level``, with these bugs."""
        found = (
            (family, tuple(bug for bug in family.bugs if bug.tier in _TIERS[level]))
            for family in self.functions(level)
        )
        return tuple((family, bugs) for family, bugs in found if bugs)


CATALOGS: dict[Split, Catalog] = {
    "train": Catalog(
        level0=TRAIN_LEVEL0,
        families=(*TRAIN_NUMBERS, *TRAIN_TEXT, *TRAIN_COLLECTIONS),
        callers=TRAIN_CALLERS,
        modules=("shop", "toolbox", "records", "measures", "office", "basics", "ledger", "depot"),
    ),
    "heldout": Catalog(
        level0=HELDOUT_LEVEL0,
        families=(*HELDOUT_SCALARS, *HELDOUT_COLLECTIONS),
        callers=HELDOUT_CALLERS,
        modules=("workshop", "gauges", "archive", "studio", "harbor", "library"),
    ),
}
