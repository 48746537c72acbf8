"""Methods × seeds × data sets in one command: ``python tools/compare.py --config cfgs/study/quick.yaml``."""

import sys

from pointadapterx.commands.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python tools/compare.py", command="compare"))
