"""What the environment variables do, and how a wrong one is reported."""

from pathlib import Path

import pytest
import torch

from refimpl import runtime


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("SIZE", "DEVICE", "SEED", "RESULTS", "SCRATCH"):
        monkeypatch.delenv(f"REFIMPL_{name}", raising=False)


def test_defaults():
    assert runtime.size_name() == "quick"
    assert runtime.seed() == 0
    assert runtime.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert runtime.results_dir() == Path(__file__).resolve().parents[1] / "results"
    assert runtime.scratch_dir() == Path(__file__).resolve().parents[1] / "build"


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    expected = (runtime.size_name(), runtime.seed(), runtime.device(), runtime.results_dir(), runtime.scratch_dir())
    for name in ("SIZE", "DEVICE", "SEED", "RESULTS", "SCRATCH"):
        monkeypatch.setenv(f"REFIMPL_{name}", "")
    got = (runtime.size_name(), runtime.seed(), runtime.device(), runtime.results_dir(), runtime.scratch_dir())
    assert got == expected


def test_size_picks_by_name(monkeypatch):
    assert runtime.size(quick=1, full=2) == 1
    monkeypatch.setenv("REFIMPL_SIZE", "full")
    assert runtime.size(quick=1, full=2) == 2
    assert runtime.size(quick=None, full=[3]) == [3]


@pytest.mark.parametrize("name", ["Full", "FULL", "medium", " quick", "0"])
def test_unknown_sizes_are_named(monkeypatch, name):
    monkeypatch.setenv("REFIMPL_SIZE", name)
    for call in (runtime.size_name, lambda: runtime.size(quick=1, full=2), runtime.describe):
        with pytest.raises(ValueError, match=f"^REFIMPL_SIZE: got {name!r}, expected 'quick' or 'full'"):
            call()


def test_seed_is_read_at_each_call(monkeypatch):
    for seed in (3, 0, 123_456_789):
        monkeypatch.setenv("REFIMPL_SEED", str(seed))
        assert runtime.seed() == seed


@pytest.mark.parametrize("text", ["-1", "1.5", "one", "1e3", "0x1"])
def test_bad_seeds_are_named(monkeypatch, text):
    monkeypatch.setenv("REFIMPL_SEED", text)
    with pytest.raises(ValueError, match="^REFIMPL_SEED: got .*whole number"):
        runtime.seed()


def test_the_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("REFIMPL_DEVICE", "cpu")
    assert runtime.device() == torch.device("cpu")
    assert torch.zeros(1, device=runtime.device()).device.type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "cuda:99"])
def test_devices_that_cannot_be_had_are_named(monkeypatch, name):
    monkeypatch.setenv("REFIMPL_DEVICE", name)
    with pytest.raises(ValueError, match=f"^REFIMPL_DEVICE: '{name}'"):
        runtime.device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_not_replaced_silently(monkeypatch):
    monkeypatch.setenv("REFIMPL_DEVICE", "cuda")
    with pytest.raises(ValueError, match="asks for a GPU; PyTorch sees 0 here"):
        runtime.device()


def test_generators_repeat_and_differ():
    first, again, other = (torch.rand(5, generator=runtime.generator(s)) for s in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert runtime.generator(7, torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("seed", [-1, True])
def test_bad_generator_seeds_are_named(seed):
    with pytest.raises(ValueError, match="^seed: got .*whole number >= 0"):
        runtime.generator(seed)


def test_a_generator_does_not_touch_the_global_state():
    before = torch.random.get_rng_state()
    torch.rand(3, generator=runtime.generator(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_describe_is_one_line_with_size_device_seed_and_version(monkeypatch):
    monkeypatch.setenv("REFIMPL_DEVICE", "cpu")
    monkeypatch.setenv("REFIMPL_SEED", "4")
    line = runtime.describe()
    assert "\n" not in line
    assert line.startswith("quick size on cpu (") and "seed 4" in line and torch.__version__ in line


def test_folders_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("REFIMPL_RESULTS", str(tmp_path / "records"))
    monkeypatch.setenv("REFIMPL_SCRATCH", str(tmp_path / "scratch"))
    assert runtime.results_dir() == tmp_path / "records"
    assert runtime.scratch_dir() == tmp_path / "scratch"
    monkeypatch.delenv("REFIMPL_DATA", raising=False)
    assert runtime.data_dir() == tmp_path / "scratch" / "data"
    monkeypatch.setenv("REFIMPL_DATA", str(tmp_path / "data"))
    assert runtime.data_dir() == tmp_path / "data"
    assert not any(tmp_path.iterdir())  # naming a folder does not make it
