"""Report the occupancy of every kernel, and check that kernels for 16-byte loads have them. compile_kernels.sh runs it.

    python benchmarks/gpu/kernel_report.py WORK OUT

WORK has, for each source, the report of ptxas (*.txt), the PTX (*.ptx) and the object file (*.o). Writes
OUT/occupancy.md. The check of the loads reads the machine code (SASS) of the object files, by cuobjdump and nvdisasm,
which are part of the CUDA toolkit and of the pip packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm. If they are
not on PATH, the check is left out with a message.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Kernels that load 16 bytes at once. All but gru_one_step_kernel have two instances: one for 16 bytes, and one for
# single columns, which are for widths that are not a multiple.
WIDE_KERNELS = {
    "activate_backward_kernel",
    "activate_kernel",
    "gru_one_step_kernel",
    "make_inputs_backward_kernel",
    "make_inputs_kernel",
    "step_gather_kernel",
    "step_rows_kernel",
    "update_rows_kernel",
}
WIDE_LOAD = re.compile(r"\bLDG\.E\.(?:\w+\.)*128\b")

# Limits of a multiprocessor (SM), from the table of compute capabilities in the CUDA C++ Programming Guide.
REGISTERS, THREADS, BLOCKS, WARP = 65536, 2048, 32, 32
SHARED_BYTES = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
RESERVED_SHARED_BYTES = 1 << 10  # by CUDA, in each block
REGISTER_UNIT, WARP_UNIT, SHARED_UNIT = 256, 4, 128  # of allocation: registers of a warp, warps of an SM, bytes


@dataclass(frozen=True)
class KernelUse:
    """What ptxas reports of a kernel: its mangled name, registers of a thread, bytes of static shared memory."""

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int


def parse_ptxas(report: str) -> list[KernelUse]:
    """Return the kernels in a report of `ptxas -v`."""
    uses = []
    for entry in re.split(r"Compiling entry function ", report)[1:]:
        kernel, architecture = re.findall(r"'([^']+)'", entry)[:2]
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if registers is None:
            raise ValueError(f"the report of ptxas has no registers of {kernel}")
        uses.append(KernelUse(kernel, architecture, int(registers[1]), int(shared[1]) if shared else 0))
    return uses


@dataclass(frozen=True)
class LaunchBounds:
    """The number of threads in a kernel's launch bounds, and whether it uses dynamic shared memory."""

    threads: int
    dynamic_shared: bool


def parse_ptx(ptx: str) -> dict[str, LaunchBounds]:
    """Return the launch bounds of each kernel, by mangled name."""
    bounds = {}
    for entry in ptx.split(".entry ")[1:]:
        match = re.match(r"(\w+)\([^)]*\)\s*\.maxntid (\d+)", entry)
        if match is None:
            raise ValueError(f"no launch bounds in the PTX of {entry.split('(', 1)[0]}")
        bounds[match[1]] = LaunchBounds(int(match[2]), "grf_dynamic_shared_memory" in entry)
    return bounds


def resident_blocks(use: KernelUse, threads: int) -> int:
    """Return how many blocks of so many threads an SM can hold. Dynamic shared memory is not counted."""
    warps = -(-threads // WARP)
    registers_of_warp = -(-use.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    all_warps = REGISTERS // registers_of_warp // WARP_UNIT * WARP_UNIT
    shared = -(-(use.shared_bytes + RESERVED_SHARED_BYTES) // SHARED_UNIT) * SHARED_UNIT
    return min(BLOCKS, THREADS // (warps * WARP), all_warps // warps, SHARED_BYTES[use.architecture] // shared)


def occupancy_table(uses: list[KernelUse], bounds: dict[str, LaunchBounds]) -> str:
    """Return a markdown table of all kernels. bounds: see `parse_ptx`."""
    names = demangle([use.kernel for use in uses])
    lines = [
        "Blocks per SM is the number of blocks that fit on a multiprocessor. ≤: fewer with dynamic shared memory.",
        "",
        "| kernel | architecture | registers | static shared memory, bytes | threads | blocks per SM | occupancy |",
        "|---|---|---|---|---|---|---|",
    ]
    for use, name in sorted(zip(uses, names, strict=True), key=lambda pair: pair[1]):
        n, limit = bounds[use.kernel].threads, "≤ " if bounds[use.kernel].dynamic_shared else ""
        blocks = resident_blocks(use, n)
        lines.append(
            f"| `{name}` | {use.architecture} | {use.registers} | {use.shared_bytes} | {n} | {limit}{blocks} "
            f"| {limit}{100 * blocks * n / THREADS:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def demangle(names: list[str]) -> list[str]:
    """Return the names with template arguments and without parameters. Unchanged if c++filt is not installed."""
    if shutil.which("c++filt") is None:
        return names
    result = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [name.replace("grf::", "").replace("cuda::", "") for name in result.stdout.splitlines()]


def is_wide(kernel: str) -> bool:
    """Return whether a kernel, by its mangled name, must load 16 bytes at once."""
    match = re.search(r"\d([a-z_]+_kernel)I[fd](Li[24]E)?", kernel)
    if match is None or match[1] not in WIDE_KERNELS:
        return False
    return match[2] is not None or match[1] == "gru_one_step_kernel"


def without_wide_loads(sass: str) -> list[str]:
    """Return the wide kernels (see `is_wide`) that have no 16-byte load from global memory in the SASS."""
    functions = re.split(r"^\s*Function : ", sass, flags=re.MULTILINE)[1:]
    kernels = {function.split(maxsplit=1)[0]: function for function in functions}
    return [kernel for kernel, code in kernels.items() if is_wide(kernel) and not WIDE_LOAD.search(code)]


def check_wide_loads(objects: list[Path]) -> str:
    """Return a message that says what was checked. Exits with an error if a kernel lacks its 16-byte loads."""
    if shutil.which("cuobjdump") is None or shutil.which("nvdisasm") is None:
        return "16-byte loads: not checked, because cuobjdump or nvdisasm is not on PATH"
    checked, narrow = 0, []
    for path in objects:
        result = subprocess.run(["cuobjdump", "-sass", path], capture_output=True, text=True, check=True)
        # One section per architecture: the kernels of each have the same names.
        for section in re.split(r"^\s*code for ", result.stdout, flags=re.MULTILINE)[1:]:
            architecture = section.split(maxsplit=1)[0]
            checked += sum(map(is_wide, re.findall(r"Function : (\w+)", section)))
            narrow += [f"{name} ({architecture})" for name in demangle(without_wide_loads(section))]
    if narrow:
        sys.exit("kernels without LDG.E.128, although they are for 16-byte loads: " + ", ".join(narrow))
    if not checked:
        sys.exit("16-byte loads: cuobjdump shows no kernel that is for 16-byte loads")
    return f"16-byte loads: LDG.E.128 in all {checked} kernels that are for them"


def main() -> None:
    work, out = map(Path, sys.argv[1:])
    uses = [use for path in sorted(work.glob("*.txt")) for use in parse_ptxas(path.read_text())]
    bounds: dict[str, LaunchBounds] = {}
    for path in sorted(work.glob("*/*.ptx")):
        bounds |= parse_ptx(path.read_text())
    (out / "occupancy.md").write_text(occupancy_table(uses, bounds))
    print(f"occupancy of {len(uses)} kernels: {out / 'occupancy.md'}")
    print(check_wide_loads(sorted(work.glob("*.o"))))


if __name__ == "__main__":
    main()
