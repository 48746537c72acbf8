"""Classes of one's own files: ``python tools/predict.py runs/demo/<time> scans/``."""

import sys

from pointadapterx.commands.predict import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], prog="python tools/predict.py"))
