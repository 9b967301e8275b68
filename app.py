"""Opens the page: `python app.py`, the same as `ovi-studio`."""

import sys

from ovi_studio.cli import main

if __name__ == "__main__":
    sys.exit(main(["page", *sys.argv[1:]]))
