"""The machine code of the kernels, against what the design asks for; leaves the table beside the build."""

from __future__ import annotations

from pathlib import Path

import machine_code
import pytest
import torch

from dendnorm import _native, info

LIBRARY = _native.library().folder / "libdendnorm.so"
ARCHITECTURES = ("sm_80", "sm_90")
COMPILER = "13.0.88"  # whose machine code docs/cuda.md shows


@pytest.fixture(scope="session")
def kernels() -> list[machine_code.Kernel]:
    found = machine_code.read(LIBRARY)
    # Where run_all.py looks for it: beside the folder of the package.
    page = LIBRARY.parents[4] / "machine_code.txt"
    page.write_text(machine_code.table(found) + "\n", encoding="utf-8")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_there_is_code_for_every_architecture(kernels, architecture):
    names = [kernel.name for kernel in kernels if kernel.architecture == architecture]
    assert set(machine_code.LIMITS) <= set(names)
    others = {kernel.name for kernel in kernels if kernel.architecture != architecture}
    assert set(names) == others


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", machine_code.LIMITS)
def test_hot_loops_keep_their_limits(kernels, name, architecture):
    (kernel,) = [kernel for kernel in kernels if (kernel.name, kernel.architecture) == (name, architecture)]
    assert kernel.loop is not None
    assert not kernel.faults, f"{kernel.faults}: {kernel.loop}"


def test_no_product_spills_and_no_hot_loop_has_a_second_writer(kernels):
    products = [kernel for kernel in kernels if machine_code.is_product(kernel)]
    # Architectures, types, lanes of both products, of the gradient, and of both at once.
    assert len(products) >= 2 * 4 * (10 + 6 + 5)
    faults = [f"{kernel.name}, {kernel.architecture}: {fault}" for kernel in products for fault in kernel.faults]
    assert not faults


def test_no_kernel_of_ours_has_local_memory(kernels):
    own = [kernel for kernel in kernels if machine_code.is_own(kernel)]
    assert not [kernel.name for kernel in own if kernel.stack or kernel.local or kernel.spilling]


def test_the_documentation_has_this_machine_code(kernels):
    build = info.collect()["build"]
    if build["cuda"] != COMPILER:
        pytest.skip(f"docs/cuda.md has what nvcc {COMPILER} makes, and this is {build['cuda']}")
    page = Path(__file__).parents[2] / "docs" / "cuda.md"
    assert machine_code.documented(kernels) in page.read_text(encoding="utf-8")


def test_a_loop_is_read_right():
    lines = [("", "MOV R1, R2"), (".L_x_1", "")]
    # A rarer way through the loop, and then the hot block.
    lines += [("", text) for text in ("IADD3 R1, R2, R3", "LDG.E R4, [R1]", "FFMA R1, R2, R3, R4", "BRA `(.L_x_2)")]
    lines.append((".L_x_2", ""))
    lines += [("", text) for text in ("LDS.128 R4, [R1]", "LDG.E.128.CONSTANT R8, [R2.64]", "FFMA R1, R2, R3, R4")]
    lines += [("", "FFMA R1, R2, R3, R4"), ("", "STL [R1], R2"), ("", "BRA `(.L_x_1)"), ("", "EXIT")]
    (loop,) = machine_code.loops(lines)
    assert (loop.whole, loop.whole_fma) == (10, 3)
    assert (loop.instructions, loop.fma, loop.loads_ahead) == (6, 2, 2)
    assert loop.loads == {"LDS.128": 1, "LDG.E.128": 1}
    assert loop.forbidden == ["STL"]


def test_the_library_is_that_of_this_torch():
    assert torch.version.cuda
    assert LIBRARY.exists()
