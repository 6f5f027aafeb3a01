"""`python -m distbelief` is the command line."""

from distbelief.cli import main

main()
