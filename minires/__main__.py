"""`python -m minires` is the command `minires`."""

import sys

from minires.commands.cli import main

sys.exit(main())
