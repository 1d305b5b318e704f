"""Katas: small Python repositories with one seeded bug each, generated from a seed.

``families_*`` and ``callers`` say what can be drawn, ``draw``, ``family`` and
``compose`` draw it, ``observe`` and ``cases`` run it, ``script`` and ``diffs``
write the tests and patches, ``generate`` the rows; ``expert`` solves them, ``trial`` by
trial and error.
"""

from palestra.tasks.katas.expert import demonstration
from palestra.tasks.katas.generate import generate_rows
from palestra.tasks.katas.spec import KataSpec
from palestra.tasks.katas.trial import Move, tried_demonstration

__all__ = ["KataSpec", "Move", "demonstration", "generate_rows", "tried_demonstration"]
