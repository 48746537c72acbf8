"""``python -m pointadapterx``: the same as the command ``pointadapterx``."""

import sys

from pointadapterx.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
