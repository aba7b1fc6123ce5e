"""Entry point of ``python -m instructedit``."""

from instructedit.cli.app import main

main()
