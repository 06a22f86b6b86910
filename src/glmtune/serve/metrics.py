"""Figures of a running server in Prometheus' form, for `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glmtune.serve.service import GrowingReply
from glmtune.serve.worker import Worker

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, worker: Worker) -> None:
        """`worker`: read for the numbers of the moment."""
        # prometheus_client's own is one for the whole program, and a second server would clash in it
        registry = self._registry = CollectorRegistry()
        self._answers = Counter(
            # prometheus_client appends `_total` to the names of counters
            "glmtune_answers",
            "Answers that have ended, by the reason",
            ["model", "reason"],
            registry=registry,
        )
        self._tokens = Counter(
            "glmtune_tokens", "Tokens read and written", ["model", "kind"], registry=registry
        )
        self._first = Histogram(
            "glmtune_first_token_seconds",
            "Time to the first token",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "glmtune_answer_seconds", "Time to the last token", ["model"], buckets=SECONDS, registry=registry
        )
        # read beside the worker's thread without a lock: each is a figure of the moment
        engine = worker.engine
        for name, words, read in (
            ("glmtune_open_answers", "Answers that are written or wait", lambda: worker.num_open),
            ("glmtune_rows", "Answers that are written", lambda: engine.num_rows),
            ("glmtune_held_tokens", "Tokens that the KV cache has room for", lambda: engine.num_held_tokens),
        ):
            Gauge(name, words, registry=registry).set_function(read)

    def count(self, reply: GrowingReply) -> None:
        """Count a reply that has ended, or was given up."""
        name = reply.model.name
        for reason in reply.reasons:
            self._answers.labels(name, reason or "cancelled").inc()
        self._tokens.labels(name, "read").inc(reply.num_prompt_tokens)
        self._tokens.labels(name, "written").inc(reply.num_tokens)
        if reply.first_s is not None:
            self._first.labels(name).observe(reply.first_s)
        self._whole.labels(name).observe(reply.took_s)

    def write(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        found: bytes = generate_latest(self._registry)
        return found
