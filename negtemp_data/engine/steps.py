"""What an engine's steps cost: how their time grows with what they have to do."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


def _zeros(*shape: int) -> Sums:
    return np.zeros(shape)


@dataclass(frozen=True, eq=False)
class StepLog:
    """Sums over the steps of an engine, from which the cost of a step's parts can be had.

    A step has the features x = (1, requests in its batch, prompt tokens that it begins with).
    """

    products: Sums = field(default_factory=lambda: _zeros(3, 3))
    """x xᵀ, added up."""
    times: Sums = field(default_factory=lambda: _zeros(3))
    """x × seconds, added up."""
    most_requests: int = 0
    """Requests of the fullest batch."""
    places: int = 0
    """Requests that a batch has room for."""

    @classmethod
    def of_step(cls, requests: int, prompt_tokens: int, seconds: float, places: int) -> "StepLog":
        """The log of a single step."""
        x = np.array([1, requests, prompt_tokens], dtype=np.float64)
        return cls(x[:, None] * x, x * seconds, requests, places)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.products[0, 0])

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return float(self.times[0])

    @property
    def requests(self) -> int:
        """Requests in the batch, added up over steps."""
        return int(self.products[0, 1])

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts of all requests that had a place."""
        return int(self.products[0, 2])

    def __add__(self, other: "StepLog") -> "StepLog":
        return StepLog(
            self.products + other.products,
            self.times + other.times,
            max(self.most_requests, other.most_requests),
            max(self.places, other.places),
        )

    def seconds_of(self, steps: float, requests: float, prompt_tokens: float) -> float:
        """Seconds that so many steps take, for so many requests and prompt tokens in all.

        A plane fitted by least squares with no negative coefficient: a fixed part of each step, a
        part for each request of its batch, and one for each prompt token, scaled so that this log's
        own sums give its own seconds.

        Args:
            steps: Number of steps.
            requests: Requests in the batch, added up over these steps.
            prompt_tokens: Tokens of the prompts that begin in them.
        """
        from scipy.optimize import nnls  # noqa: PLC0415

        if not self.seconds:
            return 0.0
        scale = np.sqrt(self.products.diagonal())
        scale[scale == 0] = 1.0  # a feature that no step had
        # ‖A w − b‖² differs from the squared error by a constant, where A² holds the products.
        values, vectors = np.linalg.eigh(self.products / np.outer(scale, scale))
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        parts, _ = nnls(root, np.linalg.pinv(root, rcond=1e-6) @ (self.times / scale))
        parts /= scale
        own = float(parts @ self.products[0])
        told = float(parts @ np.array([steps, requests, prompt_tokens]))
        return told * self.seconds / own
