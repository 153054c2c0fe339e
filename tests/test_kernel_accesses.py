"""The emulator counts sectors and bank conflicts, and no kernel has more of them than the figures below.

A kernel with a slow access pattern makes the last test fail on a machine without a GPU.
If a change of a kernel makes it worse for a reason, `PYTHONPATH=.:benchmarks:tools python -m gpu.count_accesses` prints
the new figures.
"""

from __future__ import annotations

from types import ModuleType

import cuda_emulator
import pytest
from gpu.count_accesses import Accesses, count_accesses
from native import why_not_emulated

from gru4rec_fast import _build

pytestmark = pytest.mark.skipif(bool(why_not_emulated("dropout")), reason=why_not_emulated("dropout") or "-")

# Requests in global memory, sectors of the requests relative to the least possible number, and cycles of shared memory
# relative to those without bank conflicts, by kernel.
PINNED = {
    "activate_backward_kernel": (900, 1.00, 1.00),
    "activate_kernel": (1800, 1.00, 1.00),
    "add_segments_kernel": (6156, 1.00, 1.00),
    "count_scores_kernel": (1766, 1.00, 1.00),
    "draw_negatives_kernel": (144, 2.74, 1.00),
    "draw_triples_kernel": (180, 3.09, 1.00),
    "dropout_mask_kernel": (2600, 1.00, 1.00),
    "extract_target_scores_kernel": (4, 3.60, 1.00),
    "find_rows_kernel": (532, 1.99, 1.00),
    "gather_targets_kernel": (48, 1.00, 1.00),
    "gru_lanes_backward_kernel": (23627, 1.16, 1.03),
    "gru_lanes_kernel": (20963, 1.09, 1.02),
    "gru_one_step_kernel": (47348, 1.86, 1.01),
    "gru_reset_after_backward_kernel": (21882, 1.10, 1.00),
    "gru_reset_after_kernel": (4036, 1.11, 1.00),
    "gru_reset_before_backward_r_kernel": (5400, 1.03, 1.00),
    "gru_reset_before_backward_z_n_kernel": (8257, 1.08, 1.00),
    "gru_reset_before_gates_kernel": (8355, 1.13, 1.00),
    "gru_reset_before_output_kernel": (8785, 1.09, 1.00),
    "index_columns_kernel": (189, 1.11, 1.00),
    "list_segments_kernel": (542, 1.30, 1.00),
    "loss_rows_kernel": (10368, 1.07, 1.00),
    "make_inputs_backward_kernel": (2100, 1.00, 1.00),
    "make_inputs_kernel": (3000, 1.00, 1.00),
    "merge_segments_kernel": (2370, 3.28, 1.00),
    "multiply_rows_kernel": (216565, 1.11, 1.00),
    "node_scales_kernel": (704, 1.04, 1.00),
    "score_offsets_kernel": (12, 1.00, 1.00),
    "select_top_k_kernel": (8691, 1.31, 1.60),
    "session_batch_kernel": (252, 1.66, 1.00),
    "step_apply_kernel": (10779, 1.12, 1.00),
    "step_gather_kernel": (10800, 1.04, 1.00),
    "step_products_kernel": (44336, 1.11, 1.00),
    "step_rows_kernel": (8840, 1.03, 1.00),
    "step_store_losses_kernel": (108, 1.00, 1.00),
    "update_rows_kernel": (4998, 1.09, 1.00),
}
REQUEST_TOLERANCE, RATIO_TOLERANCE = 1.25, 1.03  # another compiler may keep other values in registers


@pytest.fixture
def emulation() -> ModuleType:
    """Return the Python module of the emulated kernels, with the settings of the emulator."""
    emulation = cuda_emulator.load()
    if emulation.what_is_checked() != "races":
        pytest.skip("with AddressSanitizer, the emulator does not see accesses")
    return emulation


def count_test_kernel(emulation: ModuleType, kernel: str) -> Accesses:
    """Return the counts of a kernel of seeded_faults.cu."""
    emulation.set_seed(0)
    emulation.count_accesses(True)
    emulation.run_test_kernel(kernel)
    (counts,) = emulation.access_counts().values()
    emulation.count_accesses(False)
    return Accesses(**counts)


def regressions(counts: dict[str, Accesses], pinned: dict[str, tuple[int, float, float]]) -> list[str]:
    """Return a message for each kernel that has more requests, sectors or bank conflicts than its pinned figures."""
    messages = []
    for kernel, (requests, excess_sectors, conflicts) in pinned.items():
        count = counts[kernel]
        if count.requests > REQUEST_TOLERANCE * requests:
            messages.append(f"{kernel}: {count.requests} requests, more than {requests}")
        if count.excess_sectors > RATIO_TOLERANCE * excess_sectors:
            messages.append(
                f"{kernel}: {count.sectors_per_request:.2f} sectors per request, {count.excess_sectors:.2f} times the "
                f"least possible number; pinned: {excess_sectors:.2f} times"
            )
        if count.conflicts > RATIO_TOLERANCE * conflicts:
            messages.append(f"{kernel}: bank conflicts {count.conflicts:.2f}, more than {conflicts:.2f}")
    return messages


def figures(count: Accesses) -> tuple[int, float, float]:
    return count.requests, count.excess_sectors, count.conflicts


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # Two warps read and write 32 integers each, 128 bytes or 4 sectors.
        ("increment_neighbors", Accesses(4, 16, 16, 0, 0, 0)),
        # Eight threads read and write an integer each, 32 bytes apart. All 8 integers would fit into one sector.
        ("increment_distant", Accesses(2, 16, 2, 0, 0, 0)),
        # 16 threads read 16 bytes each, in one request, and write 4 bytes each.
        ("sum_four_at_once", Accesses(2, 8 + 2, 8 + 2, 0, 0, 0)),
        # The four requests for the same 256 bytes touch all of their sectors.
        ("sum_four_one_by_one", Accesses(5, 4 * 8 + 2, 4 * 2 + 2, 0, 0, 0)),
        # 32 rows are written, and 32 columns are read. A warp writes 32 sums.
        ("transpose_padded", Accesses(1, 4, 4, 64, 64, 64)),
        ("transpose_unpadded", Accesses(1, 4, 4, 64, 32 + 32 * 32, 64)),
    ],
)
def test_accesses_are_counted(emulation: ModuleType, kernel: str, expected: Accesses) -> None:
    assert count_test_kernel(emulation, kernel) == expected


@pytest.mark.parametrize(
    ("good", "slow", "message"),
    [
        ("increment_neighbors", "increment_distant", "8.00 sectors per request, 8.00 times the least possible number"),
        ("sum_four_at_once", "sum_four_one_by_one", "5 requests, more than 2"),
        ("transpose_padded", "transpose_unpadded", "bank conflicts 16.50, more than 1.00"),
    ],
)
def test_a_slow_access_pattern_is_found(emulation: ModuleType, good: str, slow: str, message: str) -> None:
    pinned = {"kernel": figures(count_test_kernel(emulation, good))}
    assert regressions({"kernel": count_test_kernel(emulation, good)}, pinned) == []
    assert message in " ".join(regressions({"kernel": count_test_kernel(emulation, slow)}, pinned))


@pytest.mark.usefixtures("emulation")
def test_no_kernel_accesses_memory_more_slowly_than_pinned() -> None:
    kernels = {*cuda_emulator.launch_bounds(_build.source_folder())} - {"at_most_32_threads"}
    assert {*PINNED} == kernels
    counts = count_accesses()
    assert {*counts} == kernels
    assert regressions(counts, PINNED) == []
