"""Train, resume, test and vote: ``python tools/main.py --config cfgs/scan_pb_t50_rs.yaml``; ``--help`` for the rest."""

import sys

from pointadapterx.commands.main import main

if __name__ == "__main__":
    sys.exit(main(prog="python tools/main.py"))
