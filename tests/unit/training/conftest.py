"""Makes `training` importable: it is run from the repository root and installed nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))
