"""Data files: what is read, and that every damaged file is refused by name."""

import gzip
import struct
import zlib

import numpy as np
import pytest
import torch

from dendnorm.lab import data
from dendnorm.lab.data import cifar


def idx_bytes(array, magic=None):
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": generator.integers(0, 10, 20, dtype=np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": generator.integers(0, 10, 7, dtype=np.uint8),
    }


def write_idx(folder, arrays, gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + ".gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)


def test_digits_split_is_fixed():
    pytest.importorskip("sklearn")
    first, second = data.load("digits"), data.load("digits")
    assert first.train_inputs.shape == (1437, 64) and first.test_inputs.shape == (360, 64)
    assert torch.equal(first.train_inputs, second.train_inputs)
    scaled = first.train_inputs.float() * first.scale
    assert scaled.min() == 0 and 0.9 < scaled.max() < 1
    assert set(first.train_targets.tolist()) == set(first.test_targets.tolist()) == set(range(10))


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("nested", [False, True])
def test_idx_is_read(tmp_path, arrays, gzipped, name, nested):
    write_idx(tmp_path / name if nested else tmp_path, arrays, gzipped)
    loaded = data.load(name, tmp_path)
    assert loaded.name == name and loaded.features == 784 and loaded.image_shape == (1, 28, 28)
    np.testing.assert_array_equal(loaded.train_inputs.numpy().reshape(20, 28, 28), arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(loaded.test_targets.numpy(), arrays["t10k-labels-idx1-ubyte"])
    assert loaded.train_targets.dtype == torch.int64
    assert (loaded.train_inputs.float() * loaded.scale).max() < 1


def test_guess_tells_the_data_set_from_the_folder(tmp_path, arrays):
    write_idx(tmp_path / "mnist", arrays)
    assert data.guess(tmp_path) == data.guess(tmp_path / "mnist") == "mnist"
    write_idx(tmp_path / "fashion-mnist", arrays)
    assert data.guess(tmp_path) == data.guess(tmp_path / "fashion-mnist") == "fashion-mnist"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="root must hold"):
        data.guess(tmp_path / "empty")


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b[:-1], "truncated"),
        (lambda b: b + b"\0", "too long"),
        (lambda b: b[:3], "header"),
        (lambda b: b"", "header"),
        (lambda b: b"\x00\x00\x0d" + b[3:], "expected magic number"),
        (lambda b: gzip.compress(b)[:-9], "gzip"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "truncated"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, arrays, file, damage, message):
    write_idx(tmp_path, arrays)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(data.DataFileError, match=message) as caught:
        data.load("mnist", tmp_path)
    assert file in str(caught.value)


def test_images_in_place_of_labels_are_refused(tmp_path, arrays):
    write_idx(tmp_path, arrays)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(arrays["train-images-idx3-ubyte"]))
    with pytest.raises(data.DataFileError, match=r"expected magic number 2049 .*got 2051"):
        data.load("mnist", tmp_path)


def test_counts_and_labels_are_checked(tmp_path, arrays):
    write_idx(tmp_path, arrays | {"train-labels-idx1-ubyte": np.zeros(19, np.uint8)})
    with pytest.raises(data.DataFileError, match="as many train labels as images, 20, got 19"):
        data.load("mnist", tmp_path)
    write_idx(tmp_path, arrays | {"train-labels-idx1-ubyte": np.full(20, 10, np.uint8)})
    with pytest.raises(data.DataFileError, match=r"labels must be in \[0, 10\), got 10 at position 0"):
        data.load("mnist", tmp_path)


def test_missing_files_are_named(tmp_path, arrays):
    write_idx(tmp_path, arrays)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        data.load("mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        data.load("mnist", tmp_path / "nowhere")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data must be one of digits.*got 'imagenet'"):
        data.load("imagenet", tmp_path)
    with pytest.raises(ValueError, match="needs root"):
        data.load("mnist")


def write_cifar(folder, records=4):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    contents = {}
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        batch = generator.integers(0, 256, (records, 3073), dtype=np.uint8)
        batch[:, 0] %= 10
        batch.tofile(folder / name)
        contents[name] = batch
    return contents


@pytest.mark.parametrize("folder", [".", "cifar-10-batches-bin", "cifar-10/cifar-10-batches-bin"])
def test_cifar_binary_is_read(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    contents = write_cifar(tmp_path / "root" / folder)
    loaded = data.load("cifar10", tmp_path / "root")
    assert loaded.train_inputs.shape == (20, 3072) and loaded.test_inputs.shape == (4, 3072)
    np.testing.assert_array_equal(loaded.train_inputs[4:8].numpy(), contents["data_batch_2.bin"][:, 1:])
    np.testing.assert_array_equal(loaded.test_targets.numpy(), contents["test_batch.bin"][:, 0])
    assert loaded.classes[0] == "airplane" and data.guess(tmp_path / "root") == "cifar10"


def test_damaged_cifar_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "RECORDS", 4)
    contents = write_cifar(tmp_path / "root")
    batch = contents["data_batch_3.bin"]
    path = tmp_path / "root" / "data_batch_3.bin"
    path.write_bytes(batch.tobytes()[:-1])
    with pytest.raises(data.DataFileError, match=r"data_batch_3.bin.*expected 12292 bytes.*got 12291 .truncated"):
        data.load("cifar10", tmp_path / "root")
    batch[2, 0] = 77
    batch.tofile(path)
    with pytest.raises(data.DataFileError, match="got 77 at position 2"):
        data.load("cifar10", tmp_path / "root")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin"):
        data.load("cifar10", tmp_path / "root")


def test_pickled_cifar_is_not_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="unpickling can run any code"):
        data.load("cifar10", tmp_path)


def write_images(root, size=(32, 32)):
    image_module = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                image = image_module.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))
                image.save(folder / f"{i}.png")
    return image_module


def test_image_folder_is_read(tmp_path):
    image_module = write_images(tmp_path)
    loaded = data.load("cifar10", tmp_path)
    assert loaded.train_inputs.shape == (6, 3072) and loaded.classes == ("cat", "dog")
    assert loaded.train_targets.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(image_module.open(tmp_path / "train" / "dog" / "1.png")).transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(loaded.train_inputs[4].numpy(), expected)


def test_damaged_image_folder_is_refused(tmp_path):
    image_module = write_images(tmp_path)
    image_module.new("RGB", (31, 32)).save(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(data.DataFileError, match=r"test.dog.1.png: expected 32 x 32 pixels.*got 32 x 31"):
        data.load("cifar10", tmp_path)
    (tmp_path / "train" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(data.DataFileError, match=r"train.cat.2.png: expected an image"):
        data.load("cifar10", tmp_path)
    huge = bytearray((tmp_path / "train" / "cat" / "0.png").read_bytes())  # by its head
    huge[16:24] = struct.pack(">2I", 60_000, 60_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    (tmp_path / "train" / "cat" / "2.png").write_bytes(huge)
    with pytest.raises(data.DataFileError, match=r"train.cat.2.png: expected an image.*decompression bomb"):
        data.load("cifar10", tmp_path)
    (tmp_path / "train" / "horse").mkdir()
    with pytest.raises(data.DataFileError, match="expected the class folders of train"):
        data.load("cifar10", tmp_path)
