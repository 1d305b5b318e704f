"""Palestra trains coding agents with reinforcement learning on real software-engineering tasks.

ARCHITECTURE.md holds the map: one ground floor (this package's own modules and
``tasks``), three wings that never import each other (``environment``, ``policy``,
``learning``) and one roof (``run``, ``cli``).
"""

__version__ = "0.1.0"
