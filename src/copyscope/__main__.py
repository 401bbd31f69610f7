"""Run the command line as `python -m copyscope`."""

from copyscope.cli.main import main

main()
