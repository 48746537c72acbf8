"""Classes of your own files: ``python tools/predict.py runs/demo/<time> scans/``."""

import sys

from pointadapterx.commands.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python tools/predict.py", command="predict"))
