"""``python -m palestra``."""

from palestra.cli.main import main

main()
