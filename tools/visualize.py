"""Pictures of what a model sees and does: ``python tools/visualize.py runs/demo/<time>``."""

import sys

from pointadapterx.commands.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python tools/visualize.py", command="visualize"))
