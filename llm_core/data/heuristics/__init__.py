"""The rules by which documents are judged, one paper a file."""
