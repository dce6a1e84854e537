"""What the server counts, for Prometheus. Nothing of what clients send is among it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from d3cli.serve.events import Closed, Event, Failed
from d3cli.serve.sessions import Sessions
from d3cli.serve.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self, worker: Worker, sessions: Sessions) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "d3_requests",
            "Requests by path and HTTP status.",
            ["path", "status"],
            registry=registry,
        )
        self._replies = Counter(
            "d3_replies", "Replies by how they ended.", ["ended"], registry=registry
        )
        self._tokens = Counter(
            "d3_tokens", "Tokens of replies and of their prompts.", ["kind"], registry=registry
        )
        self._ttft = Histogram(
            "d3_time_to_first_token_seconds",
            "From the request to the first token, waiting included.",
            buckets=SECONDS,
            registry=registry,
        )
        self._token_s = Histogram(
            "d3_time_per_token_seconds",
            "Mean time of a decode step of each reply.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            registry=registry,
        )
        for name, text, read in (
            ("d3_waiting_requests", "Requests that wait.", lambda: worker.waiting),
            ("d3_running_requests", "Requests that are being answered.", lambda: worker.is_busy),
            ("d3_sessions", "KV caches that are kept.", lambda: len(sessions)),
            ("d3_kv_cache_bytes", "Bytes that KV caches take.", lambda: sessions.nbytes),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def count(self, event: Event) -> None:
        """Counts how a reply ended, by its last event."""
        if isinstance(event, Failed):
            status = event.error.status
            ended = {499: "left", 503: "refused"}.get(status, "failed")
            self._replies.labels(ended).inc()
        elif isinstance(event, Closed):
            self._replies.labels("complete").inc()
            self._count_tokens(event)
        else:
            self._replies.labels("left").inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)

    def _count_tokens(self, event: Closed) -> None:
        usage, d3 = event.usage, event.usage.get("d3", {})
        reused = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        self._tokens.labels("prompt").inc(usage["prompt_tokens"])
        self._tokens.labels("reused").inc(reused)
        self._tokens.labels("reply").inc(usage["completion_tokens"])
        if d3.get("ttft_s") is not None:
            self._ttft.observe(d3["ttft_s"])
        if d3.get("tokens_per_second"):
            self._token_s.observe(1 / d3["tokens_per_second"])
