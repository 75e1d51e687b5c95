"""The command line: what it takes, where results go, and how it ends when it is stopped or told something wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, fields, replace
from importlib import metadata

import pytest

import dendnorm
from dendnorm import _extras
from dendnorm.lab import cli, comparison, device, paper, report, settings
from dendnorm.lab.cli import options
from dendnorm.lab.settings import Settings

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ONE = ["--epochs", "1", "--trials", "1", "--batch", "200", "--hidden", "10", "--norm", "l0", "--quiet"]


@pytest.fixture
def told(monkeypatch):
    """The settings that a command line makes; nothing is trained."""

    class Told(Exception):
        pass

    def run(settings, out, **more):
        raise Told(settings, out)

    monkeypatch.setattr(comparison, "run", run)

    def settings_of(*arguments):
        with pytest.raises(Told) as caught:
            cli.main(["train", *arguments])
        return caught.value.args[0]

    return settings_of


def test_without_options_it_is_the_default_settings(told):
    assert told() == Settings()


@pytest.mark.parametrize(
    "arguments", [["100", "50"], ["100,50"], ["100,", "50"], ["100", ",50"], ["100", "--hidden", "50"]]
)
def test_lists_are_set_apart_by_spaces_or_commas(told, arguments):
    assert told("--hidden", *arguments).hidden == (100, 50)
    assert told("--norm", "none,lp:2").norms == told("--norm", "none", "lp:2").norms == ("none", "lp:2")


def test_names_of_the_paper_are_lists_too(monkeypatch):
    asked = []

    def run(name, out, **more):
        asked.append((name, more["data"]))
        raise ValueError("enough")

    monkeypatch.setattr(paper, "run", run)
    for arguments in (["1D,2A"], ["1D", "2A"], ["1D,", "2A"]):
        assert cli.main(["paper", *arguments, "--data", "mnist,fashion-mnist", "--quiet"]) == 2
    assert asked == [("1D", ["mnist", "fashion-mnist"])] * 3


def test_density_is_epsilon(told):
    assert told("--density", "0.3") == told("--epsilon", "0.3") == Settings(epsilon=0.3)


def test_every_field_is_an_option(told):
    """With a value that is not the default, which then is the one of the settings."""
    values = {"data": "mnist", "root": "x", "hidden": (7, 8), "norms": ("joint",), "activation": "relu",
              "schedule": "cosine", "zeta_schedule": "cosine", "device": "cpu", "matched": True,
              "inspect": (0, 2), "moves": (1, 2), "start": "equal", "degrees": "lognormal", "regrowth": "zero",
              "grow": "gradient"}  # fmt: skip
    for described in fields(Settings):
        step = 0.125 if described.type == "float" else 3
        value = values[described.name] if described.name in values else described.default + step
        flag = (settings.option_of(described).flags or ("--" + described.name.replace("_", "-"),))[0]
        text = () if value is True else (",".join(map(str, value)) if isinstance(value, tuple) else str(value),)
        more = ("--data", "mnist") if described.name == "root" else ()
        more = ("--start", "equal") if described.name in ("scale", "degrees") else more
        assert getattr(told(flag, *text, *more), described.name) == value


def test_a_new_field_is_an_option_a_check_and_a_record(monkeypatch):
    """A setting is described once."""

    @dataclass(frozen=True)
    class More(Settings):
        leak: float = settings.setting(0.5, "of nothing", check=(lambda value: value < 1, "below 1"))

    parser = options.argparse.ArgumentParser()
    for module in (settings, options):
        monkeypatch.setattr(module, "Settings", More)
    options.add_settings(parser)
    assert "of nothing (default: 0.5)" in " ".join(parser.format_help().split())
    chosen = More(**options.given_settings(parser.parse_args(["--leak", "0.25"])))
    assert chosen.recorded()["leak"] == chosen.identity()["leak"] == 0.25
    assert settings.words(chosen.recorded()).endswith("leak 0.25")
    assert "leak" not in settings.words(More().recorded())
    with pytest.raises(ValueError, match="leak must be below 1, got 2"):
        replace(chosen, leak=2.0)


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"dendnorm {dendnorm.__version__}"


# ---- where results go


def test_results_are_not_overwritten_unasked(tmp_path, capsys):
    assert cli.main(["train", *ONE, "--out", str(tmp_path)]) == 0
    held = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert cli.main(["train", *ONE, "--seed", "1", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds results already" in error and "--overwrite" in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == held
    assert cli.main(["train", *ONE, "--seed", "1", "--out", str(tmp_path), "--overwrite"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["seed"] == 1


def test_bench_does_not_overwrite_unasked(tmp_path, capsys):
    (tmp_path / "bench.json").write_text("held")
    arguments = ["bench", "--shape", "4,3,2,0.5", "--contender", "dendnorm", "--rounds", "1", "--no-sweeps", "--quiet"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "bench.json").read_text() == "held"
    assert cli.main([*arguments, "--out", str(tmp_path), "--overwrite"]) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["shapes"]


def test_without_a_folder_a_new_one_is_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert cli.main(["train", *ONE]) == 0
    names = ["dendnorm-results", "dendnorm-results-2", "dendnorm-results-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert all((tmp_path / name / "results.json").exists() for name in names)
    assert str(report.free_folder("other", "results.json")) == "other"


# ---- how it ends


def start(*arguments):
    command = [sys.executable, "-m", "dendnorm", *arguments]
    # A process in the background may have been told to ignore SIGINT, and its children would, too.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy(),
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def wait_for(path, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists() and process.poll() is None, process.communicate()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_what_is_done(tmp_path, number, status):
    process = start("train", *ONE, "--trials", "100000", "--out", str(tmp_path))
    wait_for(tmp_path / "results.json", process)
    process.send_signal(number)
    out, error = process.communicate(timeout=300)
    assert process.returncode == status and "Traceback" not in error, error
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["interrupted"] and written["runs"][0]["complete"]
    assert "Interrupted" in (tmp_path / "table.md").read_text() and "Interrupted" in error
    assert (tmp_path / "curves.png").exists() and "l0" in written["summary"] and out


def test_the_handler_of_sigterm_is_given_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["info"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    statuses = []
    other = threading.Thread(target=lambda: statuses.append(cli.main(["info"])))
    other.start()
    other.join()
    assert statuses == [0], "threads cannot set handlers"


def ends_in_one_sentence(capsys, *arguments):
    assert cli.main([*arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "Traceback" not in error and "Errno" not in error
    return error


def test_a_file_in_place_of_a_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "inside"):
        error = ends_in_one_sentence(capsys, "train", *ONE, "--out", str(out))
        assert "out must be a folder" in error and str(out) in error
    for arguments in (["--root", str(file)], ["--root", str(file), "--data", "mnist"]):
        error = ends_in_one_sentence(capsys, "train", *ONE, "--out", str(tmp_path / "out"), *arguments)
        assert "root must be a folder" in error and "which is a file" in error
    error = ends_in_one_sentence(capsys, "bench", "--roofline", str(tmp_path), "--quiet")
    assert "Is a directory" in error and str(tmp_path) in error


def test_errors_of_the_system_are_a_sentence(tmp_path, capsys, monkeypatch):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device", str(tmp_path / "results.json"))

    monkeypatch.setattr(comparison, "write_text", full)
    error = ends_in_one_sentence(capsys, "train", *ONE, "--out", str(tmp_path))
    assert error == f"dendnorm train: No space left on device: {tmp_path / 'results.json'}\n"


@pytest.mark.parametrize("name", ["banana", "meta", "mps", "cuda:x"])
def test_an_unknown_device_is_one_sentence(tmp_path, capsys, name):
    error = ends_in_one_sentence(capsys, "train", *ONE, "--out", str(tmp_path / "out"), "--device", name)
    assert "device must be auto, cpu, cuda or cuda:NUMBER" in error and repr(name) in error
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="device must be"):
        device.choose_device(name)


@pytest.mark.parametrize("command", ["train", "demo", "bench"])
def test_a_device_is_looked_at_before_packages_are_asked_for(tmp_path, capsys, monkeypatch, command):
    for name in ("tqdm", "matplotlib", "matplotlib.figure", "sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    error = ends_in_one_sentence(capsys, command, "--device", "cuda:99", "--out", str(tmp_path / "out"))
    assert "cuda:99" in error and "pip install" not in error
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_what_can_be_installed(tmp_path, capsys, monkeypatch):
    needs = ["torch>=2.11", "tqdm; extra == 'train'", 'matplotlib ; extra == "train"', 'scipy; extra == "bench"']
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    error = ends_in_one_sentence(capsys, "train", *ONE, "--out", str(tmp_path / "out"))
    assert error.rstrip().endswith("pip install matplotlib tqdm") and "dendnorm[" not in error
    assert not (tmp_path / "out").exists(), "before anything is trained"


def test_a_source_tree_names_the_package_alone(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs the package pillow for train; .*: pip install pillow$"):
        _extras.require("PIL", "train")
