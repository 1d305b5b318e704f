"""Isolated machine-like places in which an agent's commands run."""
