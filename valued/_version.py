"""The version, once: packaging and the ``User-Agent`` header read this literal."""

from typing import Final

__version__: Final = "0.1.0"
