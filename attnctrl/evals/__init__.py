"""Batch evaluations: what pictures are measured by, and the searches and reports that use it."""
