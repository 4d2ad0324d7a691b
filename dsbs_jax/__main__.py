"""`python -m dsbs_jax VERB` is the same as `dsbs VERB`."""

import sys

from dsbs_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
