"""The loader on small archives that are written here in the formats of the data sets."""

import hashlib
import importlib
import io
import math
import tarfile
import urllib.error
import urllib.request
import zipfile

import jaxtyping
import numpy as np
import pytest
import torch

from refimpl.data.uci import UCI, uci

module = importlib.import_module("refimpl.data.uci")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def csv(array):
    file = io.StringIO()
    np.savetxt(file, array, delimiter=",", header=",".join("abc"), comments="")
    return file.getvalue().encode()


def write(folder, files, monkeypatch):
    """An archive with these files in the place of the real one; its checksum becomes the expected one."""
    with tarfile.open(folder / module.MAF.name, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = (folder / module.MAF.name).read_bytes()
    archive = module.MAF._replace(md5=hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.setattr(module, "MAF", archive)


def numbers(rows, columns, seed=0):
    return np.random.RandomState(seed).randn(rows, columns)


def test_miniboone_is_split_from_the_end_and_standardised(tmp_path, monkeypatch):
    data = 3 * numbers(200, 43) + 7
    write(tmp_path, {"data/miniboone/data.npy": npy(data)}, monkeypatch)
    parts = uci("miniboone", folder=tmp_path)
    assert [tuple(part.shape) for part in parts] == [(162, 43), (18, 43), (20, 43)]
    both = torch.cat(parts[:2])
    torch.testing.assert_close(both.mean(0), torch.zeros(43), atol=1e-6, rtol=0)
    torch.testing.assert_close(both.std(0, correction=0), torch.ones(43), atol=1e-5, rtol=0)
    whole = (data - data[:180].mean(0)) / data[:180].std(0)
    torch.testing.assert_close(torch.cat(parts), torch.tensor(whole, dtype=torch.float32))


def test_power_loses_two_columns_and_gets_a_little_noise_but_not_in_time(tmp_path, monkeypatch):
    data = np.round(numbers(300, 8) * 100)
    data[:, 7] = np.arange(300)
    write(tmp_path, {"data/power/data.npy": npy(data)}, monkeypatch)
    first, again = (torch.cat(uci("power", folder=tmp_path)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (300, 6)
    minutes = first[:, 5].sort().values
    assert torch.diff(minutes).std() < 1e-4 * torch.diff(minutes).mean() + 1e-6  # still equally spaced
    assert not torch.equal(first[:, 5], minutes)  # but shuffled


def test_hepmass_keeps_signals_and_continuous_features(tmp_path, monkeypatch):
    train, test = numbers(400, 25), numbers(100, 26, 1)
    train[:, 0], test[:, 0] = np.arange(400) % 2, np.arange(100) % 2
    for column in (4, 9, 20):
        train[:100, column] = -50.0
    write(tmp_path, {"data/hepmass/1000_train.csv": csv(train), "data/hepmass/1000_test.csv": csv(test)}, monkeypatch)
    parts = uci("hepmass", folder=tmp_path)
    assert [tuple(part.shape) for part in parts] == [(180, 21), (20, 21), (50, 21)]
    signals = train[train[:, 0] == 1]
    kept = np.delete(signals, [0, 4, 9, 20], axis=1)
    expected = torch.tensor((kept - kept.mean(0)) / kept.std(0), dtype=torch.float32)
    torch.testing.assert_close(torch.cat(parts[:2]), expected, atol=1e-5, rtol=0)


def test_gas_drops_sensors_that_repeat_others(tmp_path):
    own = numbers(500, 8)
    doubles = own[:, [2, 5, 5]] * 2 + 1e-3 * numbers(500, 3, 1)
    data = np.hstack([numbers(500, 3, 2), own, doubles])
    text = io.StringIO()
    np.savetxt(text, data, header="Time Meth Eth sensors", comments="")
    with zipfile.ZipFile(tmp_path / module.GAS.name, "w") as archive:
        archive.writestr("ethylene_CO.txt", text.getvalue())
    parts = uci("gas", folder=tmp_path)
    assert [tuple(part.shape) for part in parts] == [(405, 8), (45, 8), (50, 8)]
    correlation = torch.corrcoef(torch.cat(parts).T)
    assert (correlation - torch.eye(8)).max() < 0.5


def test_another_shape_is_reported(tmp_path, monkeypatch):
    write(tmp_path, {"data/miniboone/data.npy": npy(numbers(50, 42))}, monkeypatch)
    with pytest.raises(ValueError, match=r"expected finite rows of 43 features"):
        uci("miniboone", folder=tmp_path)
    bad = numbers(50, 43)
    bad[3, 3] = math.nan
    write(tmp_path, {"data/miniboone/data.npy": npy(bad)}, monkeypatch)
    with pytest.raises(ValueError, match=r"expected finite rows of 43 features"):
        uci("miniboone", folder=tmp_path)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    write(tmp_path, {"data/miniboone/data.npy": npy(np.array([{"a": 1}], dtype=object))}, monkeypatch)
    with pytest.raises(ValueError, match="allow_pickle"):
        uci("miniboone", folder=tmp_path)


def test_a_damaged_or_incomplete_archive_is_not_used(tmp_path, monkeypatch):
    (tmp_path / module.MAF.name).write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"MD5 checksum .* expected 9b9c9b.*renamed to maf-data.tar.gz.damaged"):
        uci("power", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["maf-data.tar.gz.damaged"]
    write(tmp_path, {"data/else": b""}, monkeypatch)
    with pytest.raises(ValueError, match="holds no data/power/data.npy"):
        uci("power", folder=tmp_path)


def test_without_file_or_network_it_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"maf-data.tar.gz is missing: put https://zenodo.org/.* \(857 MB\)"):
        uci("power", folder=tmp_path)
    with pytest.raises(ConnectionError, match=r"cannot download https://archive.ics.uci.edu/.*no network here"):
        uci("gas", folder=tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_download_arrives_under_its_own_name(tmp_path, monkeypatch):
    write(tmp_path, {"data/miniboone/data.npy": npy(numbers(50, 43))}, monkeypatch)
    content = (tmp_path / module.MAF.name).read_bytes()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: io.BytesIO(content))
    parts = uci("miniboone", folder=tmp_path / "cache", download=True)
    assert len(parts.train) == 41
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [module.MAF.name]


def test_an_unknown_name():
    with pytest.raises(ValueError, match="name: got 'bsds', expected one of power, gas, hepmass, miniboone"):
        uci("bsds")
    assert list(UCI) == ["power", "gas", "hepmass", "miniboone"]
