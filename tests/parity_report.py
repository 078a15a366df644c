"""Compare our networks with the numbers of published ones, fixture by fixture.

    python tests/parity_report.py DIR

prints for each fixture of DIR how far outputs and gradients are from the original's, as parts of the tolerance, and
ends with `N of N within tolerance`. `--keep FOLDER` also writes copies small enough for this repository.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import parity


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=parity.FOLDER, help="fixtures; default: those of the tests")
    parser.add_argument("--keep", metavar="FOLDER", help="write small copies here")
    arguments = parser.parse_args()
    names = parity.names(arguments.folder)
    within = 0
    for name in names:
        start = time.perf_counter()
        found = parity.compare(name, arguments.folder)
        within += found.within
        verdict = "ok" if found.within else "DIFFERS"
        seconds = time.perf_counter() - start
        print(f"{name:32} outputs {found.outputs:8.2g}  gradients {found.gradients:8.2g}  {seconds:5.1f} s  {verdict}")
        if arguments.keep:
            parity.keep(name, arguments.folder, arguments.keep)
    print(f"{within} of {len(names)} within tolerance")
    return 0 if within == len(names) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
