"""Pipelines, recipes and tasks; a message about torchvision, which nobody needs, is kept out of the log."""

from .quiet import hush

hush()
