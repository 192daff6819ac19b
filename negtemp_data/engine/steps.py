"""What an engine's steps cost: how their time grows with the requests that they serve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepLog:
    """Sums over the steps of an engine, of which a line through (requests, seconds) can be had."""

    steps: int = 0
    seconds: float = 0.0
    requests: int = 0
    """Requests in the batch, added up over steps."""
    squared_requests: int = 0
    request_seconds: float = 0.0
    """Requests × seconds, added up over steps."""
    most_requests: int = 0
    """Requests of the fullest batch."""
    places: int = 0
    """Requests that a batch has room for."""

    def __add__(self, other: "StepLog") -> "StepLog":
        return StepLog(
            self.steps + other.steps,
            self.seconds + other.seconds,
            self.requests + other.requests,
            self.squared_requests + other.squared_requests,
            self.request_seconds + other.request_seconds,
            max(self.most_requests, other.most_requests),
            max(self.places, other.places),
        )

    def seconds_of(self, steps: float, requests: float) -> float:
        """Seconds that so many steps take, whose batches have so many requests in all.

        A line fitted by least squares: a step's fixed part, and a part for each request, which
        holds its share of prefills too. Neither is negative; for this log's own steps and requests
        the result is `seconds`.

        Args:
            steps: Number of steps.
            requests: Requests in the batch, added up over these steps.
        """
        if not self.steps or not self.requests:
            return 0.0
        variance = self.steps * self.squared_requests - self.requests**2
        covariance = self.steps * self.request_seconds - self.requests * self.seconds
        # All batches of one size, or one that grows with nothing, say nothing of the two parts.
        slope = max(0.0, covariance / variance) if variance > 0 else 0.0
        slope = min(slope, self.seconds / self.requests)
        base = (self.seconds - slope * self.requests) / self.steps
        return base * steps + slope * requests
