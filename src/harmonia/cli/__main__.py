"""`python -m harmonia.cli`."""

from harmonia.cli.main import main

main()
