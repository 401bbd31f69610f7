"""`python -m copyscope`."""

from .cli import main

main()
