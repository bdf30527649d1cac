"""Batch evaluations: sets, methods, runs on disk, reports."""
