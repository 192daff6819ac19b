"""The CPU's kernels: how exact they are, and that rows do not depend on their neighbours."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from dense_base import rescaled, sorted_bounds
from negtemp_data.sampling import host_backend, host_kernels
from negtemp_data.sampling.columns import (
    OutcomeNumber,
    OutcomeValue,
    RowNumber,
    RuleNumber,
    RuleValue,
    StateNumber,
)
from negtemp_data.sampling.host_backend import HostBackend
from negtemp_data.sampling.host_kernels import _exp
from negtemp_data.sampling.rescale import RescaleRequest
from negtemp_data.sampling.state import LONG_AGO
from negtemp_data.sampling.supports import Limits, Uses
from negtemp_data.sampling.text import FireCode

PREFIXES = {RowNumber: "_", RuleNumber: "_", RuleValue: "_", StateNumber: "_"} | {
    OutcomeNumber: "_OUT_",
    OutcomeValue: "_OUT_",
}

# Around the 1,024 logits that are summed together, the 64 of a block, and a model's vocabulary.
WIDTHS = [1, 63, 64, 65, 1023, 1025, 4099, 49_152]


@pytest.mark.parametrize(("lowest", "bound"), [(-0.5, 2e-7), (-5, 4e-7), (-87, 4e-6)])
def test_the_exponential_is_exact_to_a_few_roundings(lowest, bound):
    x = np.linspace(lowest, 0, 20_001, dtype=np.float32)
    ours = np.array([_exp(each) for each in x], dtype=np.float64)
    assert np.abs(ours / np.exp(x.astype(np.float64)) - 1).max() < bound
    assert ours[-1] == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_statistics_are_those_of_float64(width):
    generator = torch.Generator().manual_seed(width)
    z_RV = (
        torch.randn(6, width, generator=generator) * torch.tensor([0.1, 1, 3, 10, 100, 3])[:, None]
    )
    z_RV[5] = z_RV[5].sort().values  # the peak comes last
    stats = HostBackend().stats(z_RV, torch.arange(6), has_deviation=True)
    exact_RV = z_RV.double()
    normalizer_R = exact_RV.logsumexp(dim=1)
    p_RV = exact_RV.softmax(dim=1)
    entropy_R = normalizer_R - (p_RV * exact_RV).sum(dim=1)
    assert torch.equal(stats.peak_K, z_RV.amax(dim=1))
    assert torch.allclose(stats.log_normalizer_K.double(), normalizer_R, rtol=2e-7, atol=5e-7)
    assert torch.allclose(stats.entropy_K.double(), entropy_R, rtol=5e-7, atol=5e-7)
    deviation_R = exact_RV.std(dim=1, correction=0)
    assert torch.allclose(stats.deviation_K.double(), deviation_R, rtol=2e-7)


def supports(width, generator):
    """Rows and limits of many kinds, hundreds of them."""
    n = 256
    scale_R = 10 ** torch.empty(n).uniform_(-4, 2, generator=generator)
    z_RV = torch.randn(n, width, generator=generator) * scale_R[:, None]
    z_RV[::5] = (z_RV[::5] * 3 / scale_R[::5, None]).round()  # ties
    z_RV[1::5][torch.rand(z_RV[1::5].shape, generator=generator) < 0.7] = -torch.inf
    z_RV[2::5] += 90
    z_RV[:, 0] = z_RV[:, 0].clamp(min=-1e3)  # something is possible
    limits = Limits(
        min_p_K=torch.zeros(n),
        top_p_K=torch.rand(n, generator=generator).double().clamp(0.01) ** 0.2,
        top_k_K=torch.randint(0, 2 * width, (n,), generator=generator),
        top_n_sigma_K=torch.full((n,), torch.inf),
        epsilon_K=torch.zeros(n),
        xtc_K=torch.rand(n, generator=generator) ** 4,
    )
    return z_RV, limits


@pytest.mark.parametrize("width", [1, 64, 1000, 4099])
@pytest.mark.parametrize("limit", ["top_p", "top_k", "xtc"])
def test_supports_are_those_that_sorting_gives(width, limit):
    z_RV, limits = supports(width, torch.Generator().manual_seed(width))
    uses = Uses(limit == "top_p", 2 * width if limit == "top_k" else 0, False, limit == "xtc")
    off = Limits(*map(torch.zeros_like, limits))
    off = off._replace(top_p_K=off.top_p_K + 1, top_n_sigma_K=limits.top_n_sigma_K)
    limits = off._replace(**{f"{limit}_K": getattr(limits, f"{limit}_K")})
    rows = torch.arange(len(z_RV))
    stats = HostBackend().stats(z_RV, rows)
    lower_K, upper_K = host_backend._bounds(host_backend._flat(z_RV), rows, stats, limits, uses)
    expected = sorted_bounds(z_RV, stats, limits, uses)
    is_forbidden_RV = z_RV == -torch.inf

    def members(lower_K, upper_K):
        return (z_RV >= lower_K[:, None]) & (z_RV <= upper_K[:, None]) & ~is_forbidden_RV

    assert torch.equal(members(lower_K, upper_K), members(*expected))


def rescale_request(n, uses, limits, generator, *, is_truncated):
    temperatures = torch.tensor([-1e-3, -1.0, -torch.inf, torch.inf, 1e5, 0.7, 1e-3, 0.0])
    return RescaleRequest(
        row_B=torch.arange(n),
        is_wanted_B=torch.rand(n, generator=generator) < 0.9,
        mask_NV=torch.empty(0),
        vocabulary_B=torch.randint(0, 3, (n,), generator=generator),
        limits=limits,
        uses=uses,
        temperature_B=temperatures[torch.randint(0, 8, (n,), generator=generator)],
        log_min_p_B=torch.rand(n, generator=generator).log() * 5,
        top_k_B=torch.randint(0, 90, (n,), generator=generator),
        largest_k=90 if is_truncated else 0,
        top_p_B=torch.rand(n, generator=generator).double().clamp(0.01) ** 0.2,
        any_top_p=is_truncated,
    )


@pytest.mark.parametrize("width", [1, 64, 1000, 4099])
@pytest.mark.parametrize("is_truncated", [False, True])
def test_bases_are_what_operations_on_whole_batches_make_of_rows(width, is_truncated):
    generator = torch.Generator().manual_seed(width + is_truncated)
    z_RV, limits = supports(width, generator)
    limits = limits._replace(top_k_K=limits.top_k_K.clamp(min=2))
    uses = Uses(True, 2 * width, False, True)
    request = rescale_request(len(z_RV), uses, limits, generator, is_truncated=is_truncated)
    mask_NV = torch.rand(3, width, generator=generator) < torch.tensor([[2], [0.5], [0.01]])
    request = request._replace(mask_NV=mask_NV)
    if not is_truncated:
        request = request._replace(
            top_k_B=torch.zeros_like(request.top_k_B), top_p_B=torch.ones_like(request.top_p_B)
        )
    stats = HostBackend().stats(z_RV, request.row_B)
    expected_RV = rescaled(z_RV, stats, request)
    HostBackend().rescale(z_RV, stats, request)
    assert torch.equal(z_RV, expected_RV)


def test_a_row_gives_the_same_bits_alone_and_on_any_number_of_threads():
    z_RV = torch.randn(9, 50_000, generator=torch.Generator().manual_seed(0)) * 3
    together = HostBackend().stats(z_RV, torch.arange(9), has_deviation=True)
    found = []

    def look():
        torch.set_num_threads(1)
        one = [HostBackend().stats(z_RV[k : k + 1], torch.tensor([0])) for k in range(9)]
        found.extend(one)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    for k, alone in enumerate(found):
        assert alone.entropy_K[0] == together.entropy_K[k]
        assert alone.log_normalizer_K[0] == together.log_normalizer_K[k]
    assert len(found) == 9


def test_kernels_are_compiled_anew_where_no_folder_can_keep_them():
    # The locator of notebooks finds no folder for a file.
    variables = {"NUMBA_CACHE_LOCATOR_CLASSES": "_IPythonCacheLocator"}
    code = "from negtemp_data.sampling import host_kernels as k; print(k._OPTIONS['cache'])"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert run.stdout == "False\n"


@pytest.mark.parametrize("bits", [0x7F800000, 0x7FC00000, 0x7FC00001, 0xFFC001FF, 0x7F812345])
@pytest.mark.parametrize("place", [0, 100, 4098])
def test_no_nan_or_infinity_goes_unseen_whatever_its_bits(bits, place):
    z_V = np.random.default_rng(0).normal(size=4099).astype(np.float32)
    z_V[place] = np.array([bits], np.uint32).view(np.float32)[0]
    stats = HostBackend().stats(torch.from_numpy(z_V[None]), torch.tensor([0]))
    assert stats.entropy_K.isnan().all()
    assert stats.log_normalizer_K.isnan().all()


def test_the_kernels_leave_the_caller_s_threads_alone():
    before = torch.get_num_threads()
    HostBackend().stats(torch.zeros(2, 8), torch.arange(2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("logits", [torch.zeros(4, 3).T, torch.zeros(3, 4, dtype=torch.float64)])
def test_logits_that_the_kernels_can_t_read_are_refused(logits):
    with pytest.raises(ValueError, match="float32, those of a row side by side"):
        HostBackend().stats(logits, torch.arange(3))


@pytest.mark.parametrize("columns", PREFIXES)
def test_the_kernels_look_for_columns_where_they_are(columns):
    unused = {"BASE"} if columns is RowNumber else set()
    for name, column in columns.__members__.items():
        if name not in unused:
            assert getattr(host_kernels, PREFIXES[columns] + name) == column


def test_the_kernels_know_what_stands_for_itself_elsewhere():
    assert host_kernels._LONG_AGO == LONG_AGO
    assert (host_kernels._ALWAYS, host_kernels._BEFORE_SPACE) == (
        FireCode.ALWAYS,
        FireCode.BEFORE_SPACE,
    )
