"""`python -m gradebench`: the same as the installed command."""

from gradebench.cli import main

main()
