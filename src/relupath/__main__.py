"""``python -m relupath`` is the command line."""

from .cli import main

main(prog_name="relupath")
