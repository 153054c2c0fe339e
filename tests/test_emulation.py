"""The CUDA emulator detects every fault in the kernels of seeded_faults.cu, and reports none in correct kernels.

The emulator runs CUDA kernels on the CPU, with the threads of a block in a random order that depends on a seed. It
detects races, divergent barriers and wrong accesses to shared memory. Compiled with AddressSanitizer, it detects
accesses outside of tensors instead of races. The kernels of this test are in tools/cuda_emulator/seeded_faults.cu.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cuda_emulator
import pytest
import torch
from native import why_not_emulated
from virtual_memory import first_and_last_blocks

from gru4rec_fast import _backend, _build, ops
from gru4rec_fast.ops.philox import philox4x32

# The reason is the same for every family of operators.
pytestmark = pytest.mark.skipif(bool(why_not_emulated("dropout")), reason=why_not_emulated("dropout") or "-")

CORRECT_KERNELS = [
    "aligned",
    "count_atomically",
    "dynamic_sum",
    "increment_distant",
    "increment_neighbors",
    "last_block_sums",
    "neighboring_bytes",
    "pass_on",
    "pass_on_in_warp",
    "shuffle_past_the_edges",
    "sum_four_at_once",
    "sum_four_one_by_one",
    "transpose_padded",
    "transpose_unpadded",
]
# Name of a kernel with a fault -> pattern of the error that must report it.
FAULTY_KERNELS = {
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
    "too_much_shared_memory": "invalid launch configuration: more dynamic shared memory than the limit",
    "not_aligned": r"thread \(\d\) accesses memory .* not aligned to 16 bytes \(.*seeded_faults.cu:\d+\)",
    "more_than_launch_bounds": "invalid launch configuration: more threads than its __launch_bounds__",
    "static_and_dynamic": "the block uses 57344 bytes of shared memory, more than 48 KB",  # 99 KB: see below
}
CONTRACTED_KERNEL = "sums_of_a_product"  # a fault only with fused multiply-adds; see test_fused_multiply_adds
OUT_OF_BOUNDS_KERNEL = "beyond_global_array"  # only AddressSanitizer detects this fault; see test_address_sanitizer


@pytest.fixture
def emulation() -> ModuleType:
    """Return the Python module of the emulated kernels, with the settings of the emulator."""
    return cuda_emulator.load()


def test_all_kernels_are_tested(emulation: ModuleType) -> None:
    assert set(emulation.test_kernel_names()) == {
        *CORRECT_KERNELS,
        *FAULTY_KERNELS,
        "check_that_fails",
        CONTRACTED_KERNEL,
        OUT_OF_BOUNDS_KERNEL,
    }


@pytest.mark.parametrize("name", CORRECT_KERNELS)
def test_correct_kernels_pass_in_any_order_of_threads(emulation: ModuleType, name: str) -> None:
    for seed in range(20):
        emulation.set_seed(seed)
        emulation.run_test_kernel(name)


@pytest.mark.parametrize(("name", "message"), FAULTY_KERNELS.items())
def test_faults_are_detected_in_any_order_of_threads(emulation: ModuleType, name: str, message: str) -> None:
    for seed in range(20):
        emulation.set_seed(seed)
        with pytest.raises(RuntimeError, match=message):
            emulation.run_test_kernel(name)


@contextmanager
def shared_memory(kilobytes: int) -> Iterator[ModuleType]:
    """Let blocks have this much shared memory."""
    emulation = cuda_emulator.load()
    emulation.set_shared_limit(kilobytes << 10)
    try:
        yield emulation
    finally:
        emulation.set_shared_limit(48 << 10)


def test_the_limit_of_48_kb_counts_static_and_dynamic_shared_memory() -> None:
    """GRF_LAUNCH raises the limit of a kernel, although its dynamic shared memory alone is below 48 KB."""
    with shared_memory(99) as emulation:
        emulation.run_test_kernel("static_and_dynamic")


@pytest.mark.parametrize(("kilobytes", "hidden"), [(99, 84), (163, 112), (227, 132)])  # sm_86, sm_80, sm_90
def test_gru_uses_the_shared_memory_of_the_gpu(kilobytes: int, hidden: int) -> None:
    """With that much shared memory, one launch computes all steps; with 48 KB, there is a launch per step."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 1, 3 * hidden), (1, hidden), (3 * hidden, hidden), (3 * hidden,))  # gate inputs, state, weight, bias
    args = [torch.randn(shape, generator=generator) for shape in shapes]
    args[2] /= hidden**0.5
    expected = ops.gru(*args, impl="reference")
    for limit, launches in ((kilobytes, 1), (48, 2)):
        with shared_memory(limit) as emulation:
            emulation.set_seed(0)
            torch.testing.assert_close(ops.gru(*args, impl="emulated"), expected)
            assert emulation.launches() == launches


@pytest.mark.parametrize(
    ("parameter", "error"),
    [
        ("struct { char bytes[4000]; }", None),
        ("struct { char bytes[4097]; }", "CUDA allows 4 KB of arguments"),
        ("std::string", "a launch copies its arguments as bytes"),
    ],
)
def test_kernel_arguments_must_be_small_and_trivially_copyable(tmp_path: Path, parameter: str, error: str) -> None:
    source = tmp_path / "launch.cpp"
    source.write_text(
        f'#include "common/simt.cuh"\nusing Parameter = {parameter};\nvoid kernel(Parameter, int*) {{}}\n'
        "void launch(Parameter p, int* out) { GRF_LAUNCH(kernel, 1, 1, 0, nullptr, p, out); }\n"
    )
    includes = [f"-I{_build.source_folder()}", f"-I{Path(cuda_emulator.__file__).parents[1]}"]
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-fsyntax-only", *includes, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if error is None:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode != 0 and error in result.stderr


def test_every_kernel_has_launch_bounds() -> None:
    csrc = _build.source_folder()
    launches = "".join(path.read_text() for path in csrc.glob("*/*.cu*"))
    kernels = set(re.findall(r"GRF_LAUNCH\(\(?(\w+)", launches)) - {"kernel"}  # GRF_LAUNCH(kernel, ...) in simt.cuh
    assert kernels == {*cuda_emulator.launch_bounds(csrc)} - {"at_most_32_threads"}


def test_fused_multiply_adds(emulation: ModuleType) -> None:
    """Bits that are equal only without fused multiply-adds differ if GRU4REC_FAST_EMULATED_FMA=1, as in .ci/full."""
    if cuda_emulator.fuses_multiply_add():
        with pytest.raises(ValueError, match="the sums differ"):
            emulation.run_test_kernel(CONTRACTED_KERNEL)
    else:
        emulation.run_test_kernel(CONTRACTED_KERNEL)


def test_failed_check_is_a_value_error_and_later_launches_work(emulation: ModuleType) -> None:
    with pytest.raises(ValueError, match="argument: must not be 5"):
        emulation.run_test_kernel("check_that_fails")
    emulation.run_test_kernel("pass_on")


def test_same_seed_gives_the_same_order_of_threads(emulation: ModuleType) -> None:
    def run_five_times(seed: int) -> list[str]:
        """Return the error messages without addresses. They name the threads of a race, which depend on the order."""
        emulation.set_seed(seed)
        messages = []
        for _ in range(5):
            with pytest.raises(RuntimeError) as error:
                emulation.run_test_kernel("missing_barrier")
            messages.append(re.sub("0x[0-9a-f]+", "", str(error.value)).partition("[kernel")[0])
        return messages

    messages = run_five_times(seed=3)
    assert len(set(messages)) > 1
    assert run_five_times(seed=3) == messages


def test_emulation_needs_cpu_tensors_and_a_cuda_kernel() -> None:
    with pytest.raises(RuntimeError, match="runs the CUDA kernels on CPU tensors, not on cuda"):
        _backend.resolve("emulated", "dropout_mask", "cuda")
    with pytest.raises(RuntimeError, match="operator build_alias_table has no CUDA kernel"):
        _backend.resolve("emulated", "build_alias_table", "cpu")


def test_auto_never_chooses_emulation() -> None:
    """A call with impl="auto" neither loads the emulator nor registers its operators."""
    script = (
        "import sys, torch\nfrom gru4rec_fast import ops\n"
        "ops.dropout_mask(1, 2, 3, 0.5, seed=0, stream=0, step=0)\n"
        "print('gru4rec_fast._emulated' in sys.modules, hasattr(torch.ops, 'gru4rec_fast_emulated') and "
        "any(name.startswith('gru4rec_fast_emulated') for name in torch._C._dispatch_get_all_op_names()))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], env=make_environment(), capture_output=True, text=True, check=False
    )
    assert process.stdout.split() == ["False", "False"], process.stderr


def test_block_limit_still_runs_several_blocks(emulation: ModuleType) -> None:
    """With a limit of 3 blocks, the first block of a grid, the last one and another one run."""
    n_blocks, block_elements = 20, 256  # of dropout_mask
    blocks_run: list[set[int]] = []
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # elements that no block writes are NaN
    emulation.set_block_limit(3)
    try:
        for seed in range(20):
            emulation.set_seed(seed)
            mask = ops.dropout_mask(
                1, 1, n_blocks * block_elements, 0.5, seed=0, stream=0, step=0, impl="emulated"
            ).view(n_blocks, block_elements)
            is_written = ~mask.isnan()
            assert torch.equal(is_written.any(1), is_written.all(1))
            blocks_run.append({*is_written.all(1).nonzero().flatten().tolist()})
    finally:
        emulation.set_block_limit(0)
        torch.use_deterministic_algorithms(was_deterministic)
    assert all({0, n_blocks - 1} <= blocks and len(blocks) <= 3 for blocks in blocks_run)
    assert len(set.union(*blocks_run)) > 5


def make_environment(**variables: str) -> dict[str, str]:
    """Return environment variables for a process that imports the same package."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | variables


@pytest.mark.slow
def test_address_sanitizer() -> None:
    """AddressSanitizer detects accesses of a kernel beyond a tensor, and reports nothing for correct kernels."""
    libraries = []
    for name in ("asan", "ubsan"):
        result = subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=False)
        libraries.append(Path(result.stdout.strip()))
    if not all(library.is_absolute() for library in libraries):  # g++ prints the bare name of a file it does not find
        pytest.skip("g++ has no libasan.so or libubsan.so")
    variables = {
        "LD_PRELOAD": " ".join(str(library.resolve()) for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        # The same value as in .ci/full, so that the emulator compiled there is used again.
        "GRU4REC_FAST_SANITIZE": "address,undefined",
    }
    script = """
import cuda_emulator
from gru4rec_fast.ops import dropout_mask
cuda_emulator.register()
module = cuda_emulator.load()
assert module.what_is_checked() == "addresses"
for name in {correct_kernels}:
    module.run_test_kernel(name)
dropout_mask(3, 5, 7, 0.5, seed=1, stream=1, step=0, impl="emulated")
print("passed", flush=True)
module.run_test_kernel("{faulty_kernel}")
"""
    for faulty_kernel in (OUT_OF_BOUNDS_KERNEL, "beyond_shared_array"):
        process = subprocess.run(
            [sys.executable, "-c", script.format(correct_kernels=CORRECT_KERNELS, faulty_kernel=faulty_kernel)],
            env=make_environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.stdout.split() == ["passed"], process.stderr
        assert "AddressSanitizer: heap-buffer-overflow" in process.stderr and faulty_kernel in process.stderr


def test_element_indices_beyond_2_to_the_31() -> None:
    """Only the first and the last block run, so that a mask of more than 2**31 elements needs hardly any memory."""
    lanes, units = 3, 2**31 // 3 + 40
    with first_and_last_blocks():
        mask = ops.dropout_mask(1, lanes, units, 0.5, seed=1, stream=1, step=9, dtype=torch.float16, impl="emulated")
    assert mask.numel() > 2**31
    n_last = mask.numel() % 256 or 256  # number of elements in the last block; other blocks have 256
    # Of the first and the last block: the lane and the unit of its first element, and its elements.
    for lane, first_unit, elements in ((0, 0, mask[0, 0, :256]), (2, units - n_last, mask[0, 2, -n_last:])):
        stream, step, lane_word = (torch.tensor(number) for number in (1, 9, lane))
        unit = torch.arange(first_unit, first_unit + len(elements))
        words = philox4x32((stream, step, lane_word, unit), 1)[0]
        assert torch.equal(elements, (words >= 2**31).half() * 2)  # 2 = 1 / (1 - p)
