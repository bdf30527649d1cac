"""The tabs: one file each, with a `TAB`."""
