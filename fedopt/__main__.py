"""`python -m fedopt` is the `fedopt` command."""

from fedopt.cli import main

if __name__ == "__main__":
    main()
