"""The few promises of the plotting helpers."""

import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

from refimpl import plots

mpl.use("Agg")


def luminance(colour):
    """Relative luminance as in WCAG 2: what is left of a colour in grey."""
    channels = np.array(mpl.colors.to_rgb(colour))
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]


@pytest.mark.parametrize("n", [1, 2, 10])
def test_sequential_colours_rise_in_grey(n):
    greys = [luminance(colour) for colour in plots.sequential(n)]
    assert len(greys) == n and greys == sorted(greys)
    assert max(greys) < 0.75  # still seen on white


def test_palette_is_distinct_and_seen_on_white():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)
    assert all(1.05 / (luminance(colour) + 0.05) > 2 for colour in plots.PALETTE)


def test_course_style_sets_defaults_that_matplotlib_knows():
    with mpl.rc_context():
        plots.use_course_style()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == plots.PALETTE
        assert mpl.rcParams["figure.dpi"] <= 80


def test_each_panel_gets_its_title():
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2)
    plots.label_panels(axes, ["one", "two"])
    assert [ax.get_title(loc="center") or ax.get_title(loc="left") for ax in axes] == ["one", "two"]
    plots.label_panels(axes[0], ["alone"])
    with pytest.raises(ValueError, match="titles"):
        plots.label_panels(axes, ["one"])
    plt.close(fig)


def test_outside_a_notebook_text_prints_and_controls_draw_once(capsys):
    seen = []
    plots.say("**3** waves")
    assert (
        plots.play(lambda **values: seen.append(values), a=SimpleNamespace(value=3), b=SimpleNamespace(value="x"))
        is None
    )
    assert capsys.readouterr().out == "**3** waves\n" and seen == [{"a": 3, "b": "x"}]


def test_a_script_without_windows_tries_each_control_at_its_ends():
    from matplotlib import pyplot as plt

    seen, before = [], plt.get_backend()
    controls = {"n": plots.slider("n", value=2, low=0, high=5), "who": plots.choice("who", ["a", "b", "c"])}
    try:
        plt.switch_backend("agg")
        plots.play(lambda **values: seen.append((values["n"], values["who"])), **controls)
    finally:
        plt.switch_backend(before)
    assert seen == [(2, "a"), (0, "a"), (5, "a"), (2, "b"), (2, "c")]


@pytest.mark.parametrize("jupyter", [True, False])
def test_controls_have_a_value_with_and_without_jupyter(jupyter, monkeypatch):
    if not jupyter:
        monkeypatch.setitem(sys.modules, "ipywidgets", None)  # importing it now fails
    whole, real = plots.slider("n", value=2, low=0, high=5), plots.slider("x", value=0.5, low=-1, high=1, step=0.1)
    menu = plots.choice("who", ["a", "b"], "b")
    assert (whole.value, real.value, menu.value, plots.choice("who", ["a", "b"]).value) == (2, 0.5, "b", "a")
    if jupyter:
        assert [type(c).__name__ for c in (whole, real, menu)] == ["IntSlider", "FloatSlider", "Dropdown"]
        assert (whole.min, whole.max, whole.description, menu.options) == (0, 5, "n", ("a", "b"))
    with pytest.raises(ValueError, match="value: got 7"):
        plots.slider("n", value=7, low=0, high=5)
    with pytest.raises(ValueError, match="value: got 'c'"):
        plots.choice("who", ["a", "b"], "c")
