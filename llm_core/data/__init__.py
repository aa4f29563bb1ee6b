"""From web pages and datasets to token shards."""
