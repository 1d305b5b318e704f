"""The OpenAI-compatible front of the engine: sessions, rendering, ledger."""
