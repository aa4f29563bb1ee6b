"""The polite crawl: frontier, spider, WARC."""
