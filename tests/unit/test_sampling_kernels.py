"""The GPU's backend: its kernels are compiled, and compared with the host, without a GPU.

Triton decides once, when it is imported, whether kernels are interpreted, and then other kernels
of the process can't be compiled any more. So the comparison has a process of its own.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from negtemp_data.sampling import (
    AnnealedTemperature,
    BernoulliTrigger,
    DynamicTemperature,
    EntropyTemperature,
    EntropyTrigger,
    MarginTrigger,
    PeriodicTrigger,
    Piece,
    PositionTrigger,
    Rule,
    Schedule,
    ScheduleSampler,
    Siblings,
    TextTrigger,
)
from negtemp_data.sampling import sampler as sampler_module
from negtemp_data.sampling.backend import backend_for
from negtemp_data.sampling.columns import OutcomeNumber, OutcomeValue
from negtemp_data.sampling.draw import Outcome
from negtemp_data.sampling.host_backend import HostBackend
from negtemp_data.sampling.stats import RowStats
from sampling_cases import SUPPORTS, TOKENS, WIDTH

COMPARISON = Path(__file__).with_name("kernels_against_host.py")

# Types of the arguments that are no float32 tensors.
INT64 = {
    "row_K", "slot_K", "position_K", "last_token_K", "vocabulary_K", "argmax_K", "known_K",
    "row_SC", "rule_SM", "tag_WS", "state_WSMC", "number_HC", "at_HA", "number_KC",
}  # fmt: skip
BOOL = {"mask_NV", "is_wanted_K", "is_changed_K", "fires_KM", "begins_with_space_V"}
OTHERS = {"value_HC": "*fp64", "next_XV": "*i32", "code_X": "*i8", "block_KB": "*i32"}
NUMBERS = {
    "row_stride", "width", "mask_stride", "n_blocks", "n_slots", "n_rules", "n_kept", "n_listed",
}  # fmt: skip


def run_comparison(**environment: str) -> None:
    """Runs all tests of the comparison in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(COMPARISON)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.timeout(1200)
def test_interpreted_kernels_do_what_the_host_does():
    run_comparison(TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_kernels_on_a_gpu_do_what_the_host_does():
    run_comparison(TRITON_INTERPRET="0")


def test_logits_on_a_cpu_are_left_to_the_host():
    assert isinstance(backend_for(torch.device("cpu")), HostBackend)


@pytest.mark.parametrize("is_full", [False, True], ids=["no limits", "all limits"])
def test_kernels_compile_for_a_gpu_that_is_not_here(is_full, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from negtemp_data.sampling import triton_backend

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    optional = {"top_n_sigma_K", "deviation_K", "xtc_K", "floor_K", "last_token_K", "fires_KM"}
    draw = {**triton_backend._DRAW, "PADDED": 1024}
    for kernel, options in (
        (triton_backend.scan_rows, triton_backend._SCAN),
        (triton_backend.settle_rows, {**triton_backend._SETTLE, "PADDED": 4}),
        (triton_backend.draw_from_rows, {**draw, "HAS_XTC": is_full}),
        (triton_backend.rescale_rows, draw),
        (triton_backend.write_one_hot, triton_backend._WRITE),
    ):
        signature, constants = {}, {}
        for place, name in enumerate(kernel.arg_names):
            # Where no rule reads the logits, settling does not either.
            is_optional = name in optional or (name, kernel) == (
                "argmax_K",
                triton_backend.settle_rows,
            )
            if name in options or (is_optional and not is_full):
                signature[name], constants[place,] = "constexpr", options.get(name)
            elif name in NUMBERS:
                signature[name] = "i32"
            else:
                kinds = [("*i64", INT64), ("*i1", BOOL), (OTHERS.get(name), OTHERS)]
                found = [kind for kind, names in kinds if name in names]
                signature[name] = found[0] if found else "*fp32"
        compiled = compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants),
            target=GPUTarget("cuda", 90, 32),
            options={name: value for name, value in options.items() if name.islower()},
        )
        assert compiled.asm["cubin"]


META = torch.device("meta")
"""Tensors without values: asking for one is an error, as it makes the host wait on a GPU."""


class ShapesBackend:
    """What kernels would fill, unfilled; torch's operations around them are done."""

    def inject(self, logits_RV, rows, states):
        from negtemp_data.sampling import triton_backend

        stats = self.stats(logits_RV, rows.row_K)
        rules = states.rules
        limits = rules.value_GC[:, 0][rows.row_K], rules.number_GC[:, 0][rows.row_K]
        triton_backend._sorted_bound(logits_RV, rows.row_K, stats, *limits, rules.uses)
        n_rows = len(rows.row_K)
        numbers = rows.row_K.new_empty(n_rows, len(OutcomeNumber))
        return Outcome(numbers, logits_RV.new_empty(n_rows, len(OutcomeValue)), None)

    def stats(self, logits_RV, row_K, *, has_deviation=False):
        column = logits_RV.new_empty(len(row_K))
        return RowStats(column, torch.empty_like(row_K), *(column,) * 5)

    def rescale(self, logits_RV, stats, request):
        from negtemp_data.sampling import triton_backend

        rows, limits, uses = request.row_B, request.limits, request.uses
        triton_backend._sorted_bound(logits_RV, rows, stats, limits.top_p_K, limits.top_k_K, uses)
        triton_backend._truncate(logits_RV, request, request.is_wanted_B)


class BlockingCopies(TorchDispatchMode):
    """Lists operations that copy from the host and wait until it is done."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
        crosses = len({tensor.device for tensor in tensors}) > 1
        if crosses and not kwargs.get("non_blocking"):
            self.found.append(func)
        return result


SCHEDULES = [
    Schedule(
        (
            Rule(PeriodicTrigger(2, 1), -1.0, burst=2),
            Rule(BernoulliTrigger(0.4), math.inf, guard=("digits",)),
            Rule(PositionTrigger((1, 4)), -1.0, is_distinct=True),
        )
    ),
    Schedule((Rule(EntropyTrigger(above=1.2), -0.5), Rule(MarginTrigger(below=0.4), 2.0))),
    Schedule((Rule(TextTrigger("word"), -1.0), Rule(TextTrigger("literal", "a"), -1.0))),
    Schedule(
        base=(
            *(Piece(2.0, n, support) for n, support in enumerate(SUPPORTS, 1)),
            Piece(EntropyTemperature(1.0), 20),
            Piece(DynamicTemperature(0.1, 2.0), 30),
            Piece(AnnealedTemperature(2.0, 1.0, 4), top_k=6, top_p=0.95, min_p=0.1),
        )
    ),
]


@pytest.mark.parametrize("rows_per_request", [1, 3])
def test_no_step_on_a_device_waits_for_it(rows_per_request, monkeypatch):
    monkeypatch.setattr(sampler_module, "backend_for", lambda _: ShapesBackend())
    sampler = ScheduleSampler(TOKENS.table(), WIDTH, META, rows_per_request)
    slots = np.array(
        [
            sampler.open(str(number), schedule, number, Siblings(5, 1))
            for number, schedule in enumerate(SCHEDULES)
        ]
    )
    n_rows = len(slots) * rows_per_request
    column = torch.empty(n_rows, dtype=torch.int64, device=META)
    logits = torch.empty(n_rows, WIDTH, device=META)
    with BlockingCopies() as copies:
        for position in range(3):
            if rows_per_request > 1:
                sampler.step_drafts(logits, slots, column, column, column, column)
                continue
            positions = np.full(n_rows, position)
            sampler.step(
                logits, np.arange(n_rows), slots, positions, lambda ids: column[: len(ids)]
            )
    assert copies.found == []
