"""`python -m distbelief` is the command line."""

from distbelief.cli.commands import main

main()
