"""Loggers beside a run's own files: one small module each, behind one protocol."""
