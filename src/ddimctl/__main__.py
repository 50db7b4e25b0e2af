"""`python -m ddimctl`."""

import sys

from ddimctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
