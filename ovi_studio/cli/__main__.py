"""`python -m ovi_studio.cli`."""

import sys

from ovi_studio.cli import main

sys.exit(main())
