"""`ddimctl` and `python -m ddimctl`."""

import sys

from ddimctl.runtime.signals import INTERRUPTED_CODE, end_on_signals


def main() -> int:
    """Run `ddimctl` with the arguments of the process, and return its exit code.

    Signals are handled before the imports, which take a second.
    """
    end_on_signals()
    try:
        from ddimctl.cli.main import main as run
    except (KeyboardInterrupt, SystemExit) as end:
        sys.stderr.write("interrupted: nothing was begun.\n")
        return int(end.code or 0) if isinstance(end, SystemExit) else INTERRUPTED_CODE
    return run()


if __name__ == "__main__":
    sys.exit(main())
