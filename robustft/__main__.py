"""python -m robustft [setting=value ...]: what ``robustft`` does."""

import sys

from robustft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
