"""Single heads: search, check, atlas."""
