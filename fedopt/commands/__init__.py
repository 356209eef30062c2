"""Commands of the command line in modules of their own; `fedopt.cli` registers them."""
