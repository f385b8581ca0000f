"""`python -m semtask` is the command line."""

from semtask.cli.main import main

main()
