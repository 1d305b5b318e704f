"""The OpenAI-compatible front of the engine: sessions, bridged prompts, ledger."""

from palestra.policy.gateway.app import create_app
from palestra.policy.gateway.gateway import Gateway
from palestra.policy.gateway.ledger import Ledger, LedgerFull, SessionLimits, UnknownSession
from palestra.policy.gateway.serve import running_gateway
from palestra.policy.gateway.spill import SpillFolder

__all__ = [
    "Gateway",
    "Ledger",
    "LedgerFull",
    "SessionLimits",
    "SpillFolder",
    "UnknownSession",
    "create_app",
    "running_gateway",
]
