"""Which agent a recipe gets."""

from __future__ import annotations

from palestra.config import AgentSection
from palestra.environment.agents.gold import GoldAgent
from palestra.environment.agents.mini import MiniAgent
from palestra.environment.agents.noop import NoopAgent
from palestra.environment.agents.protocol import Agent


def make_agent(section: AgentSection, *, step_timeout_s: float, time_limit_s: float) -> Agent:
    """Make the agent that ``section`` names.

    Args:
        section: name, prompt set and limits.
        step_timeout_s: seconds that one command may take.
        time_limit_s: wall-clock seconds that the agent may work on one task.

    Raises:
        ConfigError: its prompt set is unknown or malformed.
    """
    match section.name:
        case "gold":
            return GoldAgent()
        case "noop":
            return NoopAgent()
        case "mini":
            return MiniAgent(section, step_timeout_s=step_timeout_s, time_limit_s=time_limit_s)
