"""Evaluations of edits: sets with known truth, how they are drawn, what the judges read, masks from words."""
