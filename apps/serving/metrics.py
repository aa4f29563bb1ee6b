"""Figures for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What is counted. Counters of requests carry the path of the route, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("groundup_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.open = Gauge(
            "groundup_requests_open", "Requests that are being answered, /metrics included.", registry=registry
        )
        self.seconds = Histogram(
            "groundup_request_seconds",
            "From a request's header to the end of its response.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "groundup_first_token_seconds",
            "From a request's parsing to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "groundup_prompt_tokens", "Tokens of prompts that were taken in.", registry=registry
        )
        self.drawn_tokens = Counter("groundup_generated_tokens", "Tokens drawn.", registry=registry)
        self.refused = Counter(
            "groundup_refused", "Requests that found the queue full (status 429).", registry=registry
        )
        self.left = Counter(
            "groundup_clients_left", "Requests whose client went away before the answer ended.", registry=registry
        )
        self.running = Gauge("groundup_rows_running", "Answers that are being drawn.", registry=registry)
        self.waiting = Gauge("groundup_rows_waiting", "Answers that wait for a place in the batch.", registry=registry)
        self.swaps = Counter("groundup_model_swaps", "Times that another model was put in place.", registry=registry)
        self.failures = Counter(
            "groundup_failures", "Calls of the model, or loadings, that failed.", ["what"], registry=registry
        )
        self.model = Gauge(
            "groundup_model_info", "1 for the model that new requests go to.", ["digest", "version"], registry=registry
        )

    def serving(self, digest: str, version: str) -> None:
        """Say which model new requests go to."""
        self.model.clear()
        self.model.labels(digest, version).set(1)

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)
