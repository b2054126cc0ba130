"""This module makes `python -m loramux` the `loramux` command."""

from loramux_cli.main import main

if __name__ == "__main__":
    main()
