"""Naive, independent reference implementations: dense, slow, dtype-preserving. For tests only."""
