"""The emulator of CUDA kernels detects all faults of tools/cuda_emulator/seeded_faults.cu, and reports no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cuda_emulator
import pytest
import torch
from native import why_not_emulated
from virtual_memory import first_and_last_blocks

from gru4rec_fast import _backend, ops
from gru4rec_fast.ops.philox import philox4x32

pytestmark = pytest.mark.skipif(bool(why_not_emulated("dropout")), reason=why_not_emulated("dropout") or "-")

SOUND = [
    "count_atomically",
    "dynamic_sum",
    "last_block_sums",
    "neighboring_bytes",
    "pass_on",
    "pass_on_in_warp",
    "shuffle_past_the_edges",
]
FAULTS = {
    "missing_barrier": r"race: thread \(\d+\) (reads|writes) shared memory .* with no barrier between",
    "shuffle_is_no_barrier": r"race: .* shared memory .* with no barrier between",
    "barrier_forgotten_in_loop": r"race: .* shared memory .* with no barrier between",
    "count_without_atomics": r"race: .* global memory .* of another block wrote",
    "last_block_without_fence": r"race: thread \(1\) reads global memory .* of another block wrote",
    "some_leave_before_barrier": r"divergent barrier: .* thread \(40\) has returned from the kernel",
    "two_barriers_in_branches": r"divergent barrier: thread \(0\) waits .* but thread \(32\) waits at .* of line",
    "barrier_against_shuffle": r"divergent barrier: no thread can continue;.* thread \(3\) waits at the __syncthreads",
    "shuffle_from_absent_lane": r"thread \(\d+\) shuffles from lane 20, which does not take part",
    "shuffle_outside_of_mask": r"mask 0xffff does not include its lane \d+",
    "beyond_shared_array": r"thread \(63\) accesses shared memory outside of its arrays",
    "shared_never_written": r"thread \(7\) reads shared memory that no thread has written",
    "no_blocks": "invalid launch configuration: a dimension of 0",
    "too_many_threads": "invalid launch configuration: more than 1024 threads",
    "too_much_shared_memory": "invalid launch configuration: more than 227 KB of shared memory",
}
FOUND_BY_ADDRESSES = "beyond_global_array"  # test_addresses_are_checked


@pytest.fixture
def emulation() -> ModuleType:
    return cuda_emulator.load()


def test_every_test_kernel_is_used(emulation: ModuleType) -> None:
    assert set(emulation.test_kernel_names()) == {*SOUND, *FAULTS, "check_that_fails", FOUND_BY_ADDRESSES}


@pytest.mark.parametrize("name", SOUND)
def test_sound_kernels_pass_in_every_order(emulation: ModuleType, name: str) -> None:
    for seed in range(20):
        emulation.set_seed(seed)
        emulation.run_test_kernel(name)


@pytest.mark.parametrize(("name", "message"), FAULTS.items())
def test_faults_are_found_in_every_order(emulation: ModuleType, name: str, message: str) -> None:
    for seed in range(20):
        emulation.set_seed(seed)
        with pytest.raises(RuntimeError, match=message):
            emulation.run_test_kernel(name)


def test_a_failed_check_is_a_value_error_and_leaves_the_machine_usable(emulation: ModuleType) -> None:
    with pytest.raises(ValueError, match="argument: must not be 5"):
        emulation.run_test_kernel("check_that_fails")
    emulation.run_test_kernel("pass_on")


def test_a_seed_repeats_the_order(emulation: ModuleType) -> None:
    def messages() -> list[str]:
        found = []
        for _ in range(5):
            with pytest.raises(RuntimeError) as error:
                emulation.run_test_kernel("missing_barrier")
            found.append(re.sub("0x[0-9a-f]+", "", str(error.value)).partition("[kernel")[0])
        return found

    emulation.set_seed(3)
    first = messages()
    assert len(set(first)) > 1
    emulation.set_seed(3)
    assert messages() == first


def test_emulated_is_only_for_the_cpu_and_only_where_there_is_a_kernel() -> None:
    with pytest.raises(RuntimeError, match="runs the CUDA kernels on CPU tensors, not on cuda"):
        _backend.resolve("emulated", "dropout_mask", "cuda")
    with pytest.raises(RuntimeError, match="operator build_alias_table has no CUDA kernel"):
        _backend.resolve("emulated", "build_alias_table", "cpu")


def test_auto_never_chooses_emulation() -> None:
    code = (
        "import sys, torch\nfrom gru4rec_fast import ops\n"
        "ops.dropout_mask(1, 2, 3, 0.5, seed=0, stream=0, step=0)\n"
        "print('gru4rec_fast._emulated' in sys.modules, hasattr(torch.ops, 'gru4rec_fast_emulated') and "
        "any(name.startswith('gru4rec_fast_emulated') for name in torch._C._dispatch_get_all_op_names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_limit_of_blocks_runs_the_ends_of_a_grid(emulation: ModuleType) -> None:
    emulation.set_block_limit(3)
    try:
        with pytest.raises(RuntimeError, match="of another block"):  # all blocks count in one number
            emulation.run_test_kernel("count_without_atomics")
    finally:
        emulation.set_block_limit(0)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | more


@pytest.mark.slow
def test_addresses_are_checked() -> None:
    """AddressSanitizer detects accesses of a kernel beyond a tensor, and reports nothing for correct kernels."""
    runtimes = []
    for name in ("asan", "ubsan"):
        answer = subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=False)
        runtimes.append(Path(answer.stdout.strip()))
    if not all(runtime.is_absolute() for runtime in runtimes):
        pytest.skip("no sanitizers' libraries beside g++")
    options = {
        "LD_PRELOAD": " ".join(str(runtime.resolve()) for runtime in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "GRU4REC_FAST_SANITIZE": "address,undefined",  # the same as in .ci/full, so that both use one library
    }
    code = """
import cuda_emulator
from gru4rec_fast.ops import dropout_mask
cuda_emulator.register()
module = cuda_emulator.load()
assert module.what_is_checked() == "addresses"
for name in {sound}:
    module.run_test_kernel(name)
dropout_mask(3, 5, 7, 0.5, seed=1, stream=1, step=0, impl="emulated")
print("sound", flush=True)
module.run_test_kernel("{fault}")
"""
    for fault in (FOUND_BY_ADDRESSES, "beyond_shared_array"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(sound=SOUND, fault=fault)],
            env=environment(**options),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == ["sound"], done.stderr
        assert "AddressSanitizer: heap-buffer-overflow" in done.stderr and fault in done.stderr


def test_index_arithmetic_beyond_two_to_the_31() -> None:
    """A mask of more than 2**31 elements. Only the first and last block run, so the pages between take no memory."""
    lanes, units = 3, 2**31 // 3 + 40
    with first_and_last_blocks():
        mask = ops.dropout_mask(1, lanes, units, 0.5, seed=1, stream=1, step=9, dtype=torch.float16, impl="emulated")
    assert mask.numel() > 2**31
    last = mask.numel() % 256 or 256
    for lane, first, got in ((0, 0, mask[0, 0, :256]), (2, units - last, mask[0, 2, -last:])):
        counter = [torch.tensor(word) for word in (1, 9, lane)]
        words = philox4x32((counter[0], counter[1], counter[2], torch.arange(first, first + len(got))), 1)[0]
        assert torch.equal(got, (words >= 2**31).half() * 2)
