"""Runs that are slow on purpose, to hold "why slow" against the truth."""
