"""One Transformer, its configuration, sampling and files."""
