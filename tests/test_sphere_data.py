"""Places on the sphere and angles on tori: conversions, the airports, and loaders on small files in the sets' formats."""

import builtins
import math
import zipfile

import jaxtyping
import pytest
import torch

from refimpl import runtime
from refimpl.data import (
    airports,
    angles_of,
    earth,
    from_degrees,
    on_torus,
    repeated,
    split_points,
    to_degrees,
    torsions,
)

# The submodules bear the names of their functions.
EARTH_SETS = {"volcano": ("volerup.csv", 2, 827), "fire": ("fire.csv", 1, 12809)}


def test_degrees_and_vectors_are_inverse():
    g = runtime.generator(0)
    x = torch.nn.functional.normalize(torch.randn(200, 3, dtype=torch.float64, generator=g), dim=1)
    torch.testing.assert_close(from_degrees(to_degrees(x)), x)
    assert to_degrees(3 * x).allclose(to_degrees(x))
    london, quito = torch.tensor([[51.5, -0.13], [-0.18, -78.5]], dtype=torch.float64)
    arc = torch.rad2deg(torch.acos(from_degrees(london) @ from_degrees(quito))).item()
    assert arc * 111.195 == pytest.approx(9190, rel=0.01)  # kilometres, from an atlas


def test_airports_are_distinct_unit_vectors_at_known_places():
    x, countries = airports()
    assert len(x) == len(countries) > 7000 and x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    assert len(set(map(tuple, to_degrees(x.double()).mul(100).round().tolist()))) > 0.99 * len(x)
    assert len(set(map(tuple, x.tolist()))) == len(x)
    heathrow = from_degrees(torch.tensor([51.4706, -0.4619]))
    assert (x - heathrow).norm(dim=1).min() < 1e-3
    assert 0.2 < countries.count("US") / len(countries) < 0.3


def test_airports_without_the_package_say_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "airportsdata":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install airportsdata"):
        airports()


def test_split_is_a_partition_and_reproducible():
    x = torch.arange(101.0)[:, None]
    parts = split_points(x, (0.5, 0.3, 0.2), runtime.generator(3))
    assert torch.equal(torch.cat(parts).sort(0).values, x)
    assert [len(p) for p in parts] == [50, 31, 20]
    again = split_points(x, (0.5, 0.3, 0.2), runtime.generator(3))
    assert all(map(torch.equal, parts, again))


def test_repeated_finds_exact_copies_only():
    train = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert repeated(torch.tensor([[3.0, 4.0], [3.0, 4.0001], [1.0, 2.0]]), train).tolist() == [1.0, 0.0, 1.0]


def write_earth(folder, name, rows=None, row="{},{}"):
    file, header, want = EARTH_SETS[name]
    lines = ["# from an agency"] * header + [
        row.format(k % 90, k % 180 - 90.5) for k in range(want if rows is None else rows)
    ]
    (folder / file).write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", EARTH_SETS)
def test_earth_reads_files_in_their_format(tmp_path, name):
    write_earth(tmp_path, name)
    x = earth(name, folder=tmp_path)
    assert x.shape == (EARTH_SETS[name][2], 3) and x.dtype == torch.float64
    torch.testing.assert_close(to_degrees(x[3]), torch.tensor([3.0, -87.5], dtype=torch.float64))


def test_earth_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="name: got 'storm', expected one of volcano, earthquake, flood, fire"):
        earth("storm")
    with pytest.raises(TypeError, match="folder: got 3"):
        earth("fire", folder=3)
    with pytest.raises(FileNotFoundError, match=r"fire.csv is missing: put https://.*fire.csv there"):
        earth("fire", folder=tmp_path)
    write_earth(tmp_path, "fire", rows=10)
    with pytest.raises(ValueError, match=r"fire.csv: got data of shape \(10, 2\), expected \(12809, 2\)"):
        earth("fire", folder=str(tmp_path))
    write_earth(tmp_path, "fire", row="{};{}")
    with pytest.raises(ValueError, match="fire.csv: expected lines of latitude, longitude"):
        earth("fire", folder=tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ConnectionError, match=r"cannot download https://.*volerup.csv: no route"):
        earth("volcano", folder=tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []  # nothing half done is left


def no_network(*args, **kwargs):
    raise OSError("no route")


def test_download_writes_the_file_once(tmp_path, monkeypatch):
    import io

    calls = []

    def served(address, timeout):
        calls.append(address)
        write_earth(tmp_path, "volcano")
        return io.BytesIO((tmp_path / "volerup.csv").read_bytes())

    monkeypatch.setattr("urllib.request.urlopen", served)
    first = earth("volcano", folder=tmp_path / "cache", download=True)
    assert torch.equal(first, earth("volcano", folder=tmp_path / "cache", download=True)) and len(calls) == 1


def test_torsions_of_rna(tmp_path):
    row = "402d\tG\t-69.2\t173.9\t51.5\t80.8\t-62.9\t11.0\t-167.6\n"
    (tmp_path / "rna.tsv").write_text(row * 9478)
    x = torsions("RNA", folder=tmp_path)
    assert x.shape == (9478, 14)
    wanted = torch.tensor([-69.2, 173.9, 51.5, 80.8, -62.9, 11.0, -167.6], dtype=torch.float64) % 360
    torch.testing.assert_close(angles_of(x[0]).rad2deg(), wanted)
    (tmp_path / "rna.tsv").write_text(row * 5)
    with pytest.raises(ValueError, match="rna.tsv: got 5 rows, expected 9478"):
        torsions("RNA", folder=tmp_path)
    (tmp_path / "rna.tsv").write_text(row.replace("51.5", "none"))
    with pytest.raises(ValueError, match="rna.tsv: expected 7 angles a row"):
        torsions("RNA", folder=tmp_path)


def test_torsions_of_proteins(tmp_path):
    def write(names):
        with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
            for name in names:
                archive.writestr(
                    name, "1abc\t-60.0\t-45.0\tGeneral\n1abc\t90.0\t180.0\tGlycine\n2xyz\t-61.0\t-44.0\tGeneral\n"
                )

    write(["data/top500/aggregated_angles.tsv", "data/rna/aggregated_angles.tsv"])
    x = torsions("General", folder=tmp_path)
    torch.testing.assert_close(
        angles_of(x).rad2deg(), torch.tensor([[300.0, 315.0], [299.0, 316.0]], dtype=torch.float64)
    )
    assert torsions("Glycine", folder=tmp_path).shape == (1, 4)
    with pytest.raises(ValueError, match=r"got angles of shape \(0,\), expected \(n, 2\)"):
        torsions("Proline", folder=tmp_path)
    write(["elsewhere.tsv"])
    with pytest.raises(ValueError, match="data.zip: has 0 files"):
        torsions("General", folder=tmp_path)
    with pytest.raises(ValueError, match="kind: got 'Water', expected 'RNA' or one of General"):
        torsions("Water")
    with pytest.raises(FileNotFoundError, match="data.zip is missing"):
        torsions("General", folder=tmp_path / "none")


def test_torus_embedding_is_inverse_to_its_angles():
    degrees = torch.tensor([[0.0, 359.0, -10.0]], dtype=torch.float64)
    torch.testing.assert_close(angles_of(on_torus(degrees)), degrees % 360 * math.pi / 180)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: from_degrees(torch.tensor([[91.0, 0.0]])), ValueError, "latitude of 91 degrees"),
        (lambda: from_degrees(torch.zeros(3)), ValueError, "places: got shape"),
        (lambda: from_degrees(torch.zeros(2, 2, dtype=torch.long)), TypeError, "places: got torch.int64"),
        (lambda: to_degrees(torch.full((2, 3), math.nan)), ValueError, "x: has values that are not finite"),
        (lambda: split_points(torch.zeros(4, 3), (0.5, 0.6)), ValueError, "shares: got"),
        (lambda: split_points(torch.zeros(4, 3), (1.5, -0.5)), ValueError, "shares: got"),
    ],
)
def test_bad_input_names_the_argument(call, error, match, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its run-time check would raise first
    with pytest.raises(error, match=match):
        call()
