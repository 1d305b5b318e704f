"""The deployment of environment and trainer as services of compose."""

from palestra.run.up.bring import Plan, bring_up, take_down
from palestra.run.up.compose import Compose, find_compose

__all__ = ["Compose", "Plan", "bring_up", "find_compose", "take_down"]
