"""The parts of apps/server.py: an OpenAI-compatible HTTP API over the sampler's continuous batches."""
