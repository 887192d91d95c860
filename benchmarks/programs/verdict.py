"""How a program ends that says whether it held."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def verdict(figures: dict[str, Any], promises: Mapping[str, bool], file: Path | None) -> int:
    """Print whether all *promises* are kept, and write the figures as JSON; the exit status."""
    figures["python"] = platform.python_version()
    figures["processors"] = os.cpu_count()
    figures["not held"] = [promise for promise, holds in promises.items() if not holds]
    for promise in figures["not held"]:
        print(f"not held: {promise}")
    print("It did not hold." if figures["not held"] else "It held.")
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return 1 if figures["not held"] else 0
