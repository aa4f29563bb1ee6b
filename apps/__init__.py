"""Programs for people: the report."""
