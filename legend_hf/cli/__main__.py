"""`python -m legend_hf.cli`: the command line without its script. Knows nothing but where it begins."""

from legend_hf.cli import main

main()
