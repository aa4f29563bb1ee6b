"""Where raw data comes from: the embedded default, public datasets, local files."""
