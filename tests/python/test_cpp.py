"""What C++ users get: an installed tree that find_package finds, and the same bits as Python's for the same seed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dendnorm
from dendnorm import _native

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}

pytestmark = pytest.mark.skipif(
    not (BUILD / "cmake_install.cmake").exists(), reason="needs the build tree that `make test` makes, build/release"
)


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"needs {name}")


def run(command: list[str], expect: int = 0) -> str:
    # One thread, as in the tests' own process where bits are compared.
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def configure(source: Path, build: Path, *prefixes: str | Path, expect: int = 0) -> str:
    launcher = shutil.which("ccache")
    return run(
        [
            tool("cmake"),
            f"-S{source}",
            f"-B{build}",
            "-GNinja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}",
            *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []),
        ],
        expect,
    )


@pytest.fixture(scope="session")
def prefix(tmp_path_factory) -> Path:
    """An installed tree that has been moved since: nothing in it may know where it was."""
    folder = tmp_path_factory.mktemp("installed")
    run([tool("cmake"), "--install", str(BUILD), "--prefix", str(folder / "first")])
    return (folder / "first").rename(folder / "moved")


def library(prefix: Path) -> Path:
    (found,) = (prefix / "lib").glob("torch*/libdendnorm.*")
    return found


def built(source: Path, target: str, prefix: Path, folder: Path) -> Path:
    configure(source, folder, prefix, torch.utils.cmake_prefix_path)
    run([tool("cmake"), "--build", str(folder)])
    return folder / target


@pytest.fixture(scope="session")
def parity(prefix, tmp_path_factory) -> Path:
    return built(ROOT / "tests" / "cpp" / "parity", "parity", prefix, tmp_path_factory.mktemp("parity"))


class LibTorchAdam(torch.optim.Optimizer):
    """The update of torch::optim::Adam: Python's own Adam rounds differently (it calls lerp_)."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(param), "square": torch.zeros_like(param)}
                state["step"] += 1
                state["mean"].mul_(0.9).add_(param.grad, alpha=1 - 0.9)
                state["square"].mul_(0.999).addcmul_(param.grad, param.grad, value=1 - 0.999)
                scale = (1 - 0.999 ** state["step"]) ** 0.5
                spread = (state["square"].sqrt() / scale).add_(1e-8)
                param.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - 0.9 ** state["step"]))


def model_of(norm: str, dtype: torch.dtype) -> torch.nn.Sequential:
    shared = dendnorm.norms.resolve(norm)
    return torch.nn.Sequential(
        dendnorm.SparseLinear(20, 30, density=0.2, norm=shared, seed=3, dtype=dtype),
        torch.nn.Sigmoid(),
        dendnorm.SparseLinear(30, 30, nnz=123, norm=shared, seed=4, dtype=dtype),
        torch.nn.ReLU(),
        dendnorm.SparseLinear(30, 5, density=1.0, norm=None, seed=5, dtype=dtype),
    )


def train(model, optimizer, x, y) -> dict[str, torch.Tensor]:
    rewire = dendnorm.SET(model, optimizer, zeta=0.3, seed=7)
    found = {}
    for epoch in range(3):
        for first in range(0, len(x), 10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[first : first + 10]), y[first : first + 10]).backward()
            optimizer.step()
        for index, layer in enumerate(rewire.step()):
            found[f"removed_{epoch}_{index}"] = torch.stack(layer.removed)
            found[f"grown_{epoch}_{index}"] = torch.stack(layer.grown)
    return found


def assert_same_bits(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(mine) == set(theirs)
    for name, tensor in mine.items():
        assert theirs[name].dtype == tensor.dtype, name
        assert torch.equal(tensor.detach(), theirs[name]), name


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@pytest.mark.feature("C++ (LibTorch): the same bits as in Python, state dicts both ways, from an installed tree")
@pytest.mark.parametrize(
    ("norm", "precision", "optimizer"),
    [
        ("l0", "float32", "sgd"),
        ("l0", "float64", "adam"),
        ("joint", "float32", "adam"),
        ("weight_norm", "float64", "sgd"),
        ("lp:3.7", "float32", "sgd"),
        ("lp-variable:2.5", "float64", "sgd"),
        ("l0-variable", "float32", "adam"),
        ("none", "float32", "sgd"),
    ],
)
def test_cpp_and_python_give_the_same_bits(parity, norm, precision, optimizer, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    torch.set_num_threads(1)
    dtype = PRECISIONS[precision]
    x, y = torch.rand(60, 20), torch.randint(5, (60,))
    dense = torch.nn.Linear(20, 30)
    data = {"x": x, "y": y, "dense": dense.weight, "dense_bias": dense.bias}
    safetensors.save_file(copied(data), tmp_path / "data.safetensors")
    dense, x = dense.to(dtype), x.to(dtype)

    other = model_of(norm, dtype)
    train(other, torch.optim.SGD(other.parameters(), lr=0.05), x, y)
    torch.save(dict(other.state_dict()), tmp_path / "python.pt")
    safetensors.save_file(copied(other.state_dict()), tmp_path / "python.safetensors")
    run([str(parity), str(tmp_path), norm, precision, optimizer])

    model = model_of(norm, dtype)
    assert_same_bits(model.state_dict(), safetensors.load_file(tmp_path / "fresh.safetensors"))
    first = model[0]
    output = model(x)
    torch.nn.functional.cross_entropy(output, y).backward()
    want = {
        "parameters": torch.tensor(len(list(model.parameters()))),
        "edges": torch.stack(first.edges()),
        "in_degrees": first.in_degrees(),
        "out_degrees": first.out_degrees(),
        "effective_weight": first.effective_weight(),
        "output": output,
    }
    want |= {f"grad_{name.replace('.', '_')}": param.grad.clone() for name, param in model.named_parameters()}
    if not norm.startswith("lp:"):
        converted = dendnorm.SparseLinear.from_dense(dense, 0.3, norm=norm)
        csr = converted.to_sparse_csr()
        again = dendnorm.SparseLinear.from_csr(
            csr.crow_indices(), csr.col_indices(), csr.values(), shape=(30, 20), bias=converted.bias, norm=norm
        )
        want |= {
            "dense_weight": converted.weight,
            "dense_row_indices": converted.row_indices,
            "dense_back": converted.to_dense().weight,
            "csr_weight": again.weight,
        }
        if converted.norm.excitability is not None:
            want["dense_excitability"] = converted.norm.excitability
    made = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if optimizer == "sgd"
        else LibTorchAdam(model.parameters(), lr=0.01)
    )
    want |= train(model, made, x, y)
    assert_same_bits(want, safetensors.load_file(tmp_path / "results.safetensors"))
    assert_same_bits(model.state_dict(), safetensors.load_file(tmp_path / "trained.safetensors"))

    # Interchange: what C++ wrote is loaded here, what Python wrote was loaded there.
    fresh = model_of(norm, dtype)
    fresh.load_state_dict(safetensors.load_file(tmp_path / "trained.safetensors"))
    assert torch.equal(fresh(x), model(x))
    for name in ("python.pt", "python.safetensors"):
        assert torch.equal(safetensors.load_file(tmp_path / f"{name}.output")["output"], other(x)), name


@pytest.mark.feature("C++ (LibTorch): the example trains, rewires, saves and loads")
def test_the_example_trains_saves_and_loads(prefix, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    program = built(ROOT / "examples" / "cpp", "train", prefix, tmp_path / "build")
    saved = tmp_path / "model.safetensors"
    said = run([str(program), "--epochs", "3", "--hidden", "50", "--save", str(saved)])
    lines = re.findall(r"^(\S+) +epoch +(\d+)  cost (\S+)  test accuracy (\S+), rewired (\S+)  \(96 of 640", said, re.M)
    assert [line[:2] for line in lines] == [(norm, str(epoch)) for norm in ("none", "l0") for epoch in (1, 2, 3)]
    for norm in ("none", "l0"):
        costs = [float(line[2]) for line in lines if line[0] == norm]
        assert costs[0] > costs[-1], said
        assert all(float(line[3]) > 0.3 for line in lines if line[0] == norm), said  # chance: 0.1
    model = torch.nn.Sequential(dendnorm.SparseLinear(64, 50, density=0.2), torch.nn.Sigmoid(), torch.nn.Linear(50, 10))
    model.load_state_dict(safetensors.load_file(saved))
    said = run([str(program), "--epochs"], expect=2)
    assert "usage" in said


def test_the_guide_shows_what_is_compiled():
    guide = (ROOT / "docs" / "cpp.md").read_text("utf-8")
    folder = ROOT / "examples" / "cpp"
    shown = {"cpp": folder / "train.cpp", "cmake": folder / "CMakeLists.txt"}
    for language, path in shown.items():
        marked = re.findall(r"^ *(?://|#) \[(\w+)\]\n(.*?)^ *(?://|#) \[\1\]\n", path.read_text("utf-8"), re.M | re.S)
        assert marked and re.findall(rf"^```{language}\n(.*?)^```$", guide, re.M | re.S) == [code for _, code in marked]


def test_a_missing_libtorch_is_named(prefix, tmp_path):
    said = configure(ROOT / "tests" / "cpp" / "parity", tmp_path, prefix, expect=1)
    assert "dendnorm needs LibTorch" in said.replace("\n", " ").replace("  ", " ")
    assert "torch.utils.cmake_prefix_path" in said


def test_the_installed_tree_knows_no_place(prefix):
    names = {str(path.relative_to(prefix)) for path in prefix.rglob("*") if path.is_file()}
    package = {"share/cmake/dendnorm/dendnormConfig.cmake", "share/cmake/dendnorm/dendnormConfigVersion.cmake"}
    assert names == {"include/dendnorm.h", str(library(prefix).relative_to(prefix)), *package}
    for name in package | {"include/dendnorm.h"}:
        text = (prefix / name).read_text("utf-8")
        assert str(ROOT) not in text and sys.prefix not in text, name


def test_the_library_shows_what_the_header_offers_and_hides_the_rest(prefix):
    lines = run([tool("nm"), "--dynamic", "--defined-only", "--demangle", str(library(prefix))])
    names = [line.split(maxsplit=2)[2] for line in lines.splitlines()]
    for offered in ("nn::SparseLinearImpl::forward(", "nn::norms::l0(", "nn::save_state_dict(", "SET::step("):
        assert any(name.startswith(f"dendnorm::{offered}") for name in names), offered
    assert "typeinfo for dendnorm::nn::SparseLinearImpl" in names
    own = [
        name for name in names if "dendnorm::" in name and "dendnorm::nn::" not in name and "dendnorm::SET" not in name
    ]
    # The first two are for the Python module.
    others = ("dendnorm::cpu::capability()", "dendnorm::cuda::plan_step(", "dendnorm::operator<<(")
    assert [name for name in own if not name.startswith(others)] == []


def test_python_says_where_the_cmake_package_is():
    where = Path(dendnorm.cmake_prefix_path)
    assert where.parts[-2:] == ("share", "cmake") and where.is_relative_to(Path(dendnorm.__file__).parent)
    if not where.exists():
        pytest.skip("the package was built in place and not installed")
    assert (where / "dendnorm" / "dendnormConfig.cmake").exists()
    assert (where.parents[1] / "include" / "dendnorm.h").exists()
    assert library(where.parents[1]).parent == _native.library().folder
