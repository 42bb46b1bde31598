"""python run.py [setting=value ...]: see python run.py --help."""

import sys

from robustft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
