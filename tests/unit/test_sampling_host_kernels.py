"""The CPU's kernels: how exact they are, and that rows do not depend on their neighbours."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from negtemp_data.sampling.host_backend import HostBackend
from negtemp_data.sampling.host_kernels import _exp

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


def test_a_row_gives_the_same_bits_alone_and_on_any_number_of_threads():
    z_RV = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0)) * 3
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


def test_the_kernels_leave_the_caller_s_threads_alone():
    before = torch.get_num_threads()
    HostBackend().stats(torch.zeros(2, 8), torch.arange(2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("logits", [torch.zeros(4, 3).T, torch.zeros(3, 4, dtype=torch.float64)])
def test_logits_that_the_kernels_can_t_read_are_refused(logits):
    with pytest.raises(ValueError, match="float32, those of a row side by side"):
        HostBackend().stats(logits, torch.arange(3))
