"""``python -m recipes.ctl``."""

from __future__ import annotations

import sys

from recipes.ctl.cli import main

sys.exit(main())
