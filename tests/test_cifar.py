"""The loader on a small archive that is written here; augmentation by what it may do to an image."""

import hashlib
import importlib
import io
import tarfile
import urllib.error
import urllib.request

import pytest
import torch

from refimpl import runtime
from refimpl.data import augment, cifar

module = importlib.import_module("refimpl.data.cifar")  # the function hides the module of its name


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def pixels(rows):
    return torch.randint(256, (rows, 3, 32, 32), dtype=torch.uint8, generator=runtime.generator(rows))


def write(folder, classes, files, monkeypatch):
    """An archive with these files in the data set's place; its checksum becomes the expected one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = buffer.getvalue()
    archive = module.ARCHIVES[classes]._replace(sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
    monkeypatch.setitem(module.ARCHIVES, classes, archive)
    folder.mkdir(exist_ok=True)
    (folder / archive.name).write_bytes(content)
    return folder / archive.name


def records(labels, images):
    return b"".join(bytes([*label, *image.flatten().tolist()]) for label, image in zip(labels, images, strict=True))


def ten(rows=2):
    """Five files of training records and one of test records; the class counts through them."""
    names = [*(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)), "cifar-10-batches-bin/test_batch.bin"]
    images = pixels(6 * rows)
    labels = [[i % 10] for i in range(6 * rows)]
    cuts = [slice(i * rows, (i + 1) * rows) for i in range(6)]
    return {name: records(labels[c], images[c]) for name, c in zip(names, cuts, strict=True)}, images


def test_ten_classes_in_the_order_of_the_files(tmp_path, monkeypatch):
    files, images = ten()
    write(tmp_path / "data", 10, files, monkeypatch)
    monkeypatch.setenv("REFIMPL_DATA", str(tmp_path / "data"))
    train_x, train_y, test_x, test_y = cifar()
    assert torch.equal(train_x, images[:10]) and torch.equal(test_x, images[10:])
    assert train_y.tolist() == list(range(10)) and test_y.tolist() == [0, 1]
    assert train_x.dtype == torch.uint8 and train_y.dtype == torch.int64 and train_x.is_contiguous()


def test_a_hundred_classes_are_the_fine_ones(tmp_path, monkeypatch):
    images = pixels(3)
    files = {
        "cifar-100-binary/train.bin": records([[19, 99], [3, 0]], images[:2]),
        "cifar-100-binary/test.bin": records([[7, 42]], images[2:]),
    }
    write(tmp_path, 100, files, monkeypatch)
    train_x, train_y, test_x, test_y = cifar(100, folder=str(tmp_path))
    assert torch.equal(torch.cat([train_x, test_x]), images)
    assert (train_y.tolist(), test_y.tolist()) == ([99, 0], [42])


def test_a_missing_archive_says_what_to_put_where(tmp_path):
    path = tmp_path / "data" / "cifar-10-binary.tar.gz"
    for download, error in ((False, FileNotFoundError), (True, ConnectionError)):
        with pytest.raises(error) as caught:
            cifar(folder=path.parent, download=download)
        for part in (str(path), "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "170 MB"):
            assert part in str(caught.value)
        assert path.parent.exists() == download and not list(tmp_path.glob("data/*"))
    assert "no network here" in str(caught.value)


def test_a_download_is_kept_for_the_next_call(tmp_path, monkeypatch):
    content = write(tmp_path, 10, ten()[0], monkeypatch).read_bytes()
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: asked.append(url) or io.BytesIO(content))
    first, second = (cifar(folder=tmp_path / "new", download=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_damaged_archive_is_set_aside_and_never_used(tmp_path, monkeypatch):
    path = write(tmp_path, 10, ten()[0], monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: got \d+ bytes with SHA-256 .* download it again"):
        cifar(folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz.damaged"]
    with pytest.raises(FileNotFoundError):
        cifar(folder=tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(whole))
    assert cifar(folder=tmp_path, download=True)[0].shape == (10, 3, 32, 32)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-1], "got 6145 bytes, expected records of 3073 bytes"),
        (lambda content: b"", "got 0 bytes"),
        (lambda content: bytes([10]) + content[1:], "got the class 10, expected 0 to 9"),
    ],
)
def test_records_of_another_layout_are_refused(tmp_path, monkeypatch, spoil, message):
    files, _ = ten()
    name = "cifar-10-batches-bin/test_batch.bin"
    files[name] = spoil(files[name])
    write(tmp_path, 10, files, monkeypatch)
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        cifar(folder=tmp_path)


def all_views(image, padding):
    """Every shift of an image with black moving in, as it is and mirrored."""
    c, h, w = image.shape
    canvas = torch.zeros(c, h + 2 * padding, w + 2 * padding, dtype=image.dtype)
    canvas[:, padding : padding + h, padding : padding + w] = image
    shifts = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    crops = [canvas[:, i : i + h, j : j + w] for i, j in shifts]
    return torch.stack([*crops, *(crop.flip(2) for crop in crops)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_augmentation_shows_each_view_equally_often_and_nothing_else(dtype):
    image = (1 + torch.arange(2 * 5 * 6)).reshape(2, 5, 6).to(dtype)
    shown = augment(image.expand(9000, -1, -1, -1), runtime.generator(0), padding=1)
    assert shown.dtype == dtype and shown.shape == (9000, 2, 5, 6)
    views = all_views(image, 1)
    same = (shown[:, None] == views).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    counts = same.sum(0)  # 18 views, 500 each: five standard deviations are 109
    assert len(counts) == 18 and (counts - 500).abs().max() < 109


def test_images_of_a_batch_get_their_own_views_and_no_other_image():
    x = torch.arange(1, 65.0)[:, None, None, None].expand(64, 3, 32, 32).contiguous()
    shown, same = (augment(x, runtime.generator(1)) for _ in range(2))
    assert torch.equal(shown, same)
    assert torch.equal(shown.amax((1, 2, 3)), x[:, 0, 0, 0]) and ((shown == x) | (shown == 0)).all()
    black = (shown == 0).all(1)
    assert black.all(2).sum(1).max() == 4 == black.all(1).sum(1).max()  # rows, columns: a shift of up to 4 pixels
    assert len({tuple(b.flatten().tolist()) for b in black}) > 30
    assert torch.equal(augment(x.flip(3), padding=0).amax((2, 3)), x.amax((2, 3)))
