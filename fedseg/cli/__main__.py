"""`python -m fedseg.cli` is the `fedseg` command."""

from fedseg.cli import main

main()
