"""The report on compiled kernels computes occupancies, and finds a kernel without its 16-byte loads."""

from __future__ import annotations

import re

import pytest
from gpu.kernel_report import (
    WIDE_KERNELS,
    KernelUse,
    LaunchBounds,
    is_wide,
    occupancy_table,
    parse_ptx,
    parse_ptxas,
    resident_blocks,
    without_wide_loads,
)

from gru4rec_fast import _build

# Lines that ptxas, nvcc and cuobjdump 13 wrote for make_inputs_kernel<float, 4> and make_inputs_kernel<float, 1>.
WIDE, NARROW = (f"_ZN3grf4cuda18make_inputs_kernelIfLi{n}EEEvNS_8NgcfRowsIT_EEPS3_" for n in (4, 1))
PTXAS = f"""ptxas info    : Compiling entry function '{WIDE}' for 'sm_90'
ptxas info    : Function properties for {WIDE}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 50 registers, used 1 barriers, 42624 bytes smem
ptxas info    : Compiling entry function '{NARROW}' for 'sm_80'
ptxas info    : Used 29 registers, used 0 barriers, 440 bytes cmem[0]
"""
PTX = f""".visible .entry {WIDE}(
	.param .align 8 .b8 {WIDE}_param_0[56],
	.param .u64 {WIDE}_param_1
)
.maxntid 256, 1, 1
{{
}}
.visible .entry {NARROW}(
	.param .u64 {NARROW}_param_0
)
.maxntid 256, 1, 1
{{
	mov.u32 	%r1, grf_dynamic_shared_memory;
}}
"""
SASS = f"""
		Function : {WIDE}
        /*0940*/                   LDG.E.128 R4, desc[UR14][R4.64] ;
		Function : {NARROW}
        /*05f0*/               @P0 LDG.E R6, desc[UR14][R6.64] ;
"""


def test_reports_of_the_compiler_are_read() -> None:
    assert parse_ptxas(PTXAS) == [KernelUse(WIDE, "sm_90", 50, 42624), KernelUse(NARROW, "sm_80", 29, 0)]
    bounds = parse_ptx(PTX)
    assert bounds == {WIDE: LaunchBounds(256, False), NARROW: LaunchBounds(256, True)}
    table = occupancy_table(parse_ptxas(PTXAS), bounds)
    assert "| sm_90 | 50 | 42624 | 256 | 4 | 50 % |" in table  # 65536 / (56 * 256) = 4.6
    assert "| sm_80 | 29 | 0 | 256 | ≤ 8 | ≤ 100 % |" in table


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "threads", "blocks"),
    [
        (32, 0, 256, 8),  # 2048 threads
        (32, 0, 32, 32),  # 32 blocks
        (33, 0, 256, 6),  # registers are allocated in units of 8 per thread: 65536 / (40 * 256) = 6.4
        (255, 0, 256, 1),  # registers: 65536 / (256 * 256)
        (32, 48 << 10, 256, 4),  # shared memory: 228 KB / (48 + 1) KB = 4.7
    ],
)
def test_occupancy_is_limited_by_the_scarcest_resource(
    registers: int, shared_bytes: int, threads: int, blocks: int
) -> None:
    assert resident_blocks(KernelUse("kernel", "sm_90", registers, shared_bytes), threads) == blocks


def test_a_kernel_without_its_16_byte_loads_is_found() -> None:
    assert is_wide(WIDE) and not is_wide(NARROW)
    assert without_wide_loads(SASS) == []
    assert without_wide_loads(SASS.replace("LDG.E.128", "LDG.E.128.CONSTANT")) == []
    assert without_wide_loads(SASS.replace("LDG.E.128", "LDG.E.64")) == [WIDE]


def test_every_kernel_with_columns_of_a_task_must_have_16_byte_loads() -> None:
    sources = "".join(path.read_text() for path in _build.source_folder().glob("*/*.cu*"))
    kernels = re.findall(r"template <typename T, int N[^{}]*?__global__[^{}]*?(\w+_kernel)\(", sources)
    assert {*kernels, "gru_one_step_kernel"} == WIDE_KERNELS
