"""``python -m palestra``."""

from palestra.cli import main

main()
