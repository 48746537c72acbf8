"""Pictures of what a model sees and does: ``python tools/visualize.py runs/demo/<time>``."""

import sys

from pointadapterx.commands.visualize import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="python tools/visualize.py"))
