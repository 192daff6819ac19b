"""What the sampler's tests share: a small model's tokens, rows of every kind, and a single step."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch

from negtemp_data.sampling import Schedule, ScheduleSampler, Siblings, Support, Vocabulary
from negtemp_data.sampling import sampler as sampler_module
from negtemp_data.sampling.backend import Backend
from negtemp_data.sampling.host_backend import HostBackend
from reference_supports import ReferenceTokens

WIDTH = 16
TOKENS = ReferenceTokens(
    texts=(
        b"<s>", b"</s>", b"a", b" a", b"b", b" b", b"c", b" c",
        b"d", b" d", b"e", b" e", b"7", b"g",
    ),
    special_ids=frozenset({0, 1}),
    classes={
        "word_start": frozenset({3, 5, 7, 9, 11}),
        "digits": frozenset({12}),
        "english": frozenset({2, 3, 4, 5, 6, 9, 10}),
        "undertrained": frozenset({9, 13}),
    },
)  # fmt: skip
"""Two tokens fewer than the logits are wide."""

TEMPERATURES = [
    -1e-6, -1e-3, -0.1, -1.0, -10.0, -math.inf, math.inf, 10.0, 1.0, 0.1, 1e-6, 0.0,
]  # fmt: skip
SUPPORTS = [
    Support(),
    Support(min_p=0.03),
    Support(top_p=0.93),
    Support(top_k=4),
    Support(top_n_sigma=1.3),
    Support(epsilon=0.013),
    Support(xtc=0.11),
    Support(top_p=0.97, top_k=6, min_p=1e-3),
    Support(min_p=0.01, xtc=0.07, top_n_sigma=2.0),
]
VOCABULARIES = [
    Vocabulary(),
    Vocabulary(exclude=("special",)),
    Vocabulary(include=("word_start",)),
    Vocabulary(include=("english", "digits"), exclude=("undertrained",)),
]

KINDS = [
    "flat", "peaked", "ties", "masked", "equal", "single", "huge", "tiny", "raised", "offset",
    "bf16", "nan", "all nan", "infinite", "forbidden",
]  # fmt: skip
BROKEN_KINDS = {"nan", "all nan", "infinite", "forbidden"}
"""Rows whose softmax has no meaning; no model makes them on purpose."""


def logits_of_kind(kind: str, generator: np.random.Generator) -> np.ndarray:
    """One float32 row."""
    normal = generator.normal(size=WIDTH)
    ids = np.arange(WIDTH)
    row = {
        "flat": normal,
        "peaked": normal * 8,
        "ties": generator.integers(-2, 3, WIDTH),
        "masked": np.where(generator.random(WIDTH) < 0.5, -np.inf, normal * 3),
        "equal": np.full(WIDTH, normal[0]),
        "single": np.where(ids == 3, normal, -np.inf),
        "huge": generator.choice([-1e30, 0.0, 1e29, 1e30], WIDTH),
        "tiny": normal * 1e-30,
        "raised": normal * 3 + 50,
        "offset": normal + 90,
        "bf16": torch.from_numpy(normal * 5).to(torch.bfloat16).to(torch.float64).numpy(),
        "nan": np.where(ids % 5 == 2, np.nan, normal),
        "all nan": np.full(WIDTH, np.nan),
        "infinite": np.where(ids == 6, np.inf, normal),
        "forbidden": np.full(WIDTH, -np.inf),
    }[kind]
    return row.astype(np.float32)


class DenseHostBackend(HostBackend):
    """The host's arithmetic in the way of an accelerator: the host knows no outcome."""

    def inject(self, *args):
        return super().inject(*args)._replace(is_waiting_K=None)


@dataclass(frozen=True)
class Implementation:
    """One way to carry out the heavy part of a step."""

    backend: Callable[[], Backend]
    device: torch.device

    def sampler(
        self, tokens: ReferenceTokens, width: int, rows_per_request: int = 1
    ) -> ScheduleSampler:
        """A sampler that uses it."""
        with mock.patch.object(sampler_module, "backend_for", return_value=self.backend()):
            return ScheduleSampler(tokens.table(), width, self.device, rows_per_request)

    def tensor(self, logits: np.ndarray) -> torch.Tensor:
        """A batch to be stepped; the array stays as it is."""
        return torch.from_numpy(logits.copy()).to(self.device)


IMPLEMENTATIONS = {
    "host": Implementation(HostBackend, torch.device("cpu")),
    "dense": Implementation(DenseHostBackend, torch.device("cpu")),
}
if os.environ.get("TRITON_INTERPRET") == "1":
    from negtemp_data.sampling.triton_backend import TritonBackend

    IMPLEMENTATIONS["kernels"] = Implementation(TritonBackend, torch.device("cpu"))


def no_text(indices: np.ndarray) -> torch.Tensor:
    """For schedules that read no text."""
    raise AssertionError(f"asked for the last tokens of rows {indices}")


def step_once(
    implementation: Implementation,
    logits: np.ndarray,
    schedules: Sequence[Schedule],
    seeds: Sequence[int],
    position: int | Sequence[int] = 0,
    siblings: Sequence[Siblings] | None = None,
    tokens: ReferenceTokens = TOKENS,
):
    """Runs one step with one schedule per row; the logits afterwards and the rows' traces."""
    sampler = implementation.sampler(tokens, logits.shape[1])
    n_rows = len(schedules)
    keys = [str(row) for row in range(n_rows)]
    slots = [
        sampler.open(key, schedule, int(seed), None if siblings is None else siblings[row])
        for row, (key, schedule, seed) in enumerate(zip(keys, schedules, seeds, strict=True))
    ]
    after = implementation.tensor(logits)
    positions = np.broadcast_to(np.asarray(position, dtype=np.int64), n_rows).copy()
    sampler.step(after, np.arange(n_rows), np.array(slots), positions, no_text)
    traces = sampler.take(keys)
    return after.cpu().numpy(), [traces[key] for key in keys]


def is_same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two float32 arrays are equal, nan and signs included."""
    return bool((left.view(np.int32) == right.view(np.int32)).all())


def assert_one_hot(row: np.ndarray, token: int) -> None:
    """Whether the row leaves nothing but `token`."""
    assert row[token] == 0.0
    assert (np.delete(row, token) == -np.inf).all()


def assert_safe(before: np.ndarray, after: np.ndarray, allowed: set[int]) -> None:
    """Whether a row is as it was, or leaves nothing but allowed tokens, one at least."""
    if is_same_bits(before, after):
        return
    assert not np.isnan(after).any() and not np.isposinf(after).any()
    left = set(np.flatnonzero(np.isfinite(after)).tolist())
    assert left and left <= allowed
    assert np.isfinite(before[list(left)]).all()
