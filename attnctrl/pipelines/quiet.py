"""Messages of other libraries that users can do nothing about."""

from __future__ import annotations

import logging

SPEAKER, NEEDLESS = "transformers.utils.import_utils", "requires torchvision (not installed)"
"""torchvision is never needed: transformers' image processors then use Pillow."""


def needed(record: logging.LogRecord) -> bool:
    """Whether a log record says something that a user can act on."""
    return NEEDLESS not in record.getMessage()


def hush() -> None:
    """Keep the others out of the log, from before diffusers is imported."""
    logging.getLogger(SPEAKER).addFilter(needed)
