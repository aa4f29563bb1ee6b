"""Programs for people: the report, the voting page, the API server."""
