"""``python -m rm_cli``: the same as ``rm-abstract``."""

from rm_cli.main import main

main()
