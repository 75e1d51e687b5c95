"""Reads the machine code of the CUDA kernels: registers, spills, and the hot loop of every kernel that has one.

    python tests/cuda/machine_code.py LIBRARY_OR_CUBIN [--out FOLDER]

Needs cuobjdump and nvdisasm (in the toolkit, or from PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm) and no GPU.
The hot loop is the innermost loop with the most multiply-adds: the others do what remains. Within it the hot block is
the straight run with the most: beside it lie what is fetched for a turn, and turns that are rarer.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

FMA = ("FFMA", "DFMA")
NOWHERE = ("LDL", "STL", "ATOM", "RED")  # in a hot loop: local memory, and a second writer
SERIAL = ("BRA.DIV", "BSSY", "BSYNC")  # what a loop that only loads and multiplies has no use for


@dataclass(frozen=True)
class Limit:
    """What the design asks of a kernel, and what a change may not make worse."""

    title: str
    target: float  # instructions for a multiply-add in the hot block, as derived
    instructions_per_fma: float  # at most
    registers: int
    load: str  # what brings the activations
    loads_ahead: int  # of them before the first multiply-add
    exchanges: bool = False  # lanes exchange sums in the loop, and so ask whether all are there: BRA.DIV


# By kernel and template arguments. 64, 80 and 128 registers leave room for 32, 24 and 16 warps on a multiprocessor.
LIMITS = {
    "product_kernel<float, float, 32, false>": Limit("products from L2", 2.1, 2.2, 64, "LDG.E.128", 8),
    "product_kernel<float, float, 8, true>": Limit("products from shared memory", 2.4, 2.4, 64, "LDS.128", 4),
    "fused_kernel<float, float, 32, false>": Limit("both gradients from L2", 2.0, 2.0, 80, "LDG.E.128", 8, True),
    "fused_kernel<float, float, 8, true>": Limit("both gradients from shared memory", 2.0, 2.0, 64, "LDS.128", 4, True),
    "sampled_kernel<float, float, 32>": Limit("gradient of the values", 2.0, 2.0, 80, "LDG.E.128", 8),
}


@dataclass
class Loop:
    whole: int  # instructions of the loop, and multiply-adds
    whole_fma: int
    instructions: int  # of the hot block, as all that follows
    fma: int
    loads: dict[str, int]  # by opcode
    loads_ahead: int  # wide loads before the first multiply-add
    forbidden: list[str]


@dataclass
class Kernel:
    name: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int
    spilling: int = 0  # LDL and STL anywhere
    loop: Loop | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def warps(self) -> int:
        """How many the registers leave room for, of 64."""
        return min(64, 65536 // (32 * -(-max(1, self.registers) // 8) * 8))


def find_tool(name: str) -> str | None:
    """On PATH, in CUDA's usual place, or where PyPI's packages put it for this interpreter."""
    candidates = [shutil.which(name), f"/usr/local/cuda/bin/{name}"]
    for folder in map(Path, sys.path):
        candidates += [str(path) for path in folder.glob(f"nvidia/*/bin/{name}")]
    return next((path for path in candidates if path and Path(path).exists()), None)


def _run(*command: str, folder: str | None = None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def demangled(name: str) -> str:
    """Without namespaces and parameters: product_kernel<float, float, 32, false>."""
    text = _run("c++filt", name).strip()
    text = re.sub(r"\(anonymous namespace\)::|dendnorm::|cuda::|cub::\w+::|\(int\)|\(bool\)", "", text)
    text = re.sub(r"^(void|int) ", "", text)
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:at]
    return text


def resources(cuobjdump: str, cubin: Path) -> dict[str, dict[str, int]]:
    found = {}
    name = None
    for line in _run(cuobjdump, "-res-usage", str(cubin)).splitlines():
        if match := re.search(r"Function (\S+):", line):
            name = match.group(1)
        elif name and "REG:" in line:
            found[name] = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
            name = None
    return found


def functions(nvdisasm: str, cubin: Path) -> dict[str, list[tuple[str, str]]]:
    """By mangled name: (label or "", opcode and operands) line by line."""
    code: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] | None = None
    for line in _run(nvdisasm, "-c", str(cubin)).splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.([^,\s]+)", line):
            current = code.setdefault(match.group(1), [])
        elif current is not None:
            if match := re.match(r"(\.L_x_\d+):", line):
                current.append((match.group(1), ""))
            elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.+?)\s*;", line):
                current.append(("", match.group(1)))
    return code


def loops(lines: list[tuple[str, str]]) -> list[Loop]:
    """The innermost ones."""
    place = {label: at for at, (label, _) in enumerate(lines) if label}
    spans = []
    for at, (_, text) in enumerate(lines):
        match = re.match(r"BRA(?:\.U)?\s.*`\((\.L_x_\d+)\)", text)
        if match and place.get(match.group(1), len(lines)) < at:
            spans.append((place[match.group(1)], at))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    return [_loop(lines[begin : end + 1]) for begin, end in inner]


def _is_fma(text: str) -> bool:
    return text.startswith(FMA)


def _hot_block(lines: list[tuple[str, str]]) -> list[str]:
    """The run without labels and branches that has the most multiply-adds."""
    blocks: list[list[str]] = [[]]
    for label, text in lines:
        if label:
            blocks.append([])
        else:
            blocks[-1].append(text)
            if text.startswith(("BRA", "BRX", "EXIT", "RET")):
                blocks.append([])
    return max(blocks, key=lambda block: (sum(map(_is_fma, block)), -len(block)))


def _loop(lines: list[tuple[str, str]]) -> Loop:
    whole = [text for _, text in lines if text]
    opcodes = [text.split()[0] for text in _hot_block(lines)]
    fma = [at for at, opcode in enumerate(opcodes) if opcode.startswith(FMA)]
    loads: dict[str, int] = {}
    for opcode in opcodes:
        if opcode.startswith(("LDG", "LDS", "LD.")):
            key = re.sub(r"\.(CONSTANT|STRONG|SYS|GPU|EF|EL|LTC\w+)", "", opcode)
            loads[key] = loads.get(key, 0) + 1
    # Until the first of their results is used: those of the turn before come first where the loop is pipelined.
    ahead = sum(".128" in opcode and opcode.startswith(("LDG", "LDS")) for opcode in opcodes[: fma[0] if fma else 0])
    bad = {text.split()[0] for text in whole if text.startswith(NOWHERE)}
    bad |= {opcode for opcode in opcodes if opcode.startswith(SERIAL)}
    return Loop(len(whole), sum(map(_is_fma, whole)), len(opcodes), len(fma), loads, ahead, sorted(bad))


def architecture_of(cubin: Path) -> str:
    match = re.search(r"sm_(\d+)", cubin.name)
    return f"sm_{match.group(1)}" if match else "sm_?"


def read(path: Path) -> list[Kernel]:
    """Every kernel of a library or cubin, our own ones first by name."""
    tools = {name: find_tool(name) for name in ("cuobjdump", "nvdisasm")}
    for name, found in tools.items():
        if found is None:
            raise FileNotFoundError(
                f"{name} is not installed: it is in the CUDA toolkit, and on PyPI as nvidia-cuda-{name}"
            )
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        cubins = [path]
        if path.suffix != ".cubin":
            _run(tools["cuobjdump"], "-xelf", "all", str(path.resolve()), folder=folder)
            cubins = sorted(Path(folder).glob("*.cubin"))
        for cubin in cubins:
            code = functions(tools["nvdisasm"], cubin)
            for name, used in resources(tools["cuobjdump"], cubin).items():
                lines = code.get(name, [])
                kernel = Kernel(demangled(name), architecture_of(cubin), used["REG"], used["STACK"], used["LOCAL"],
                                used["SHARED"])  # fmt: skip
                kernel.spilling = sum(text.startswith(("LDL", "STL")) for _, text in lines)
                hot = [loop for loop in loops(lines) if loop.fma > 0]
                kernel.loop = max(hot, key=lambda loop: (loop.fma, -loop.instructions), default=None)
                kernel.faults = faults_of(kernel)
                kernels.append(kernel)
    return sorted(kernels, key=lambda kernel: (kernel.architecture, kernel.name))


def is_own(kernel: Kernel) -> bool:
    """CUB's kernels are its own affair."""
    return not re.search(r"\bDevice\w+Kernel|EmptyKernel", kernel.name)


def is_product(kernel: Kernel) -> bool:
    return kernel.name.startswith(("product_kernel<", "sampled_kernel<", "fused_kernel<"))


def faults_of(kernel: Kernel) -> list[str]:
    """What the design does not allow: spills and local memory anywhere, and in hot loops what serialises a warp."""
    faults = []
    if not is_own(kernel):
        return faults
    if is_product(kernel):
        if kernel.stack or kernel.local or kernel.spilling:
            faults.append(f"uses local memory ({kernel.stack} B of stack, {kernel.spilling} LDL and STL)")
        if kernel.loop is None:
            faults.append("no loop with multiply-adds was found")
    limit = LIMITS.get(kernel.name)
    if kernel.loop is None:
        return faults
    wrong = [opcode for opcode in kernel.loop.forbidden if limit or opcode.startswith(NOWHERE)]
    if limit and limit.exchanges:
        wrong = [opcode for opcode in wrong if opcode != "BRA.DIV"]
    if wrong:
        faults.append(f"{', '.join(wrong)} in the hot loop")
    if limit is None:
        return faults
    each = kernel.loop.instructions / kernel.loop.fma
    if kernel.architecture == "sm_90" and each > limit.instructions_per_fma:
        faults.append(f"{each:.2f} instructions for a multiply-add, at most {limit.instructions_per_fma} wanted")
    if kernel.registers > limit.registers:
        faults.append(f"{kernel.registers} registers, at most {limit.registers} wanted")
    if kernel.loop.loads_ahead < limit.loads_ahead:
        faults.append(f"{kernel.loop.loads_ahead} loads before the first multiply-add, {limit.loads_ahead} wanted")
    if limit.load not in kernel.loop.loads:
        faults.append(f"loads {kernel.loop.loads}, {limit.load} for the activations wanted")
    return faults


def table(kernels: list[Kernel]) -> str:
    """The kernels of the products with their hot loops, and every fault."""
    head = (
        "kernel",
        "arch",
        "regs",
        "warps",
        "local",
        "block",
        "FMA",
        "per FMA",
        "target",
        "whole loop",
        "loads in the block",
    )
    rows = [head]
    for kernel in kernels:
        if not is_product(kernel) or kernel.loop is None:
            continue
        loop, limit = kernel.loop, LIMITS.get(kernel.name)
        loads = ", ".join(f"{count} {name}" for name, count in sorted(loop.loads.items()))
        target = f"{limit.target}" if limit else ""
        rows.append((kernel.name, kernel.architecture, str(kernel.registers), str(kernel.warps),
                     str(kernel.stack + kernel.local), str(loop.instructions), str(loop.fma),
                     f"{loop.instructions / loop.fma:.2f}", target,
                     f"{loop.whole / loop.whole_fma:.2f}", loads))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    own = [kernel for kernel in kernels if is_own(kernel)]
    most = max((kernel.registers for kernel in own), default=0)
    lines.append(f"{len(own)} kernels of our own; at most {most} registers; "
                 f"{sum(kernel.stack + kernel.local > 0 for kernel in own)} with local memory")  # fmt: skip
    for kernel in kernels:
        limit = LIMITS.get(kernel.name)
        if limit and kernel.loop and kernel.loop.instructions > limit.target * kernel.loop.fma:
            each = kernel.loop.instructions / kernel.loop.fma
            lines.append(f"above its target: {limit.title}, {kernel.architecture}: {each:.2f}, {limit.target} derived")
    lines += [f"MISSED: {kernel.name}, {kernel.architecture}: {fault}" for kernel in kernels for fault in kernel.faults]
    return "\n".join(lines)


def documented(kernels: list[Kernel]) -> str:
    """The kernels with limits as docs/cuda.md shows them, in Markdown."""
    lines = ["| kernel | registers | warps | local bytes | instructions per multiply-add | in all of the loop |"]
    lines.append("|---" * 6 + "|")
    for name, limit in LIMITS.items():
        (kernel,) = (kernel for kernel in kernels if (kernel.name, kernel.architecture) == (name, "sm_90"))
        assert kernel.loop is not None
        lines.append(f"| {limit.title} | {kernel.registers} | {kernel.warps} | {kernel.stack + kernel.local} | "
                     f"{kernel.loop.instructions / kernel.loop.fma:.2f} | "
                     f"{kernel.loop.whole / kernel.loop.whole_fma:.2f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, help="where machine_code.json and machine_code.txt go")
    arguments = parser.parse_args()
    kernels = read(arguments.path)
    text = table(kernels)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "machine_code.txt").write_text(text + "\n", encoding="utf-8")
        content = json.dumps([asdict(kernel) for kernel in kernels], indent=1)
        (arguments.out / "machine_code.json").write_text(content, encoding="utf-8")
    return 1 if any(kernel.faults for kernel in kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
