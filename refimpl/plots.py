"""One style for every figure, text cells with measured numbers, and the controls of *Play*.

Nothing here is imported by the methods; matplotlib, IPython and ipywidgets are imported inside the functions.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from refimpl._checks import check_sizes

__all__ = ["PALETTE", "choice", "label_panels", "play", "say", "sequential", "slider", "use_course_style"]

# Okabe and Ito's colour-blind-safe colours without their yellow, darkest contrast first.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444"]


def use_course_style() -> None:
    """Set matplotlib's defaults to the course's style: sizes for notebook width, quiet axes, the palette."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (7.6, 3.1),
            "figure.dpi": 78,
            "savefig.dpi": 78,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 10.5,
            "font.family": "DejaVu Sans",
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.labelsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#666666",
            "axes.linewidth": 0.8,
            "axes.prop_cycle": cycler(color=PALETTE),
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "xtick.color": "#444444",
            "ytick.color": "#444444",
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "lines.linewidth": 1.8,
            "image.cmap": "cividis",
        }
    )


def sequential(n: int) -> list[tuple[float, float, float, float]]:
    """``n`` colours in an order that the eye reads as low to high (also in grey and to a colour-blind eye).

    Raises:
        ValueError: if ``n`` is not a whole number >= 1.
    """
    import matplotlib as mpl

    check_sizes(n=n)
    return [mpl.colormaps["viridis"](0.05 + 0.83 * i / max(n - 1, 1)) for i in range(n)]


def label_panels(axes: Any, titles: list[str]) -> None:
    """Give each panel its title; a missing or surplus title is an error.

    Raises:
        ValueError: if there are not as many titles as panels.
    """
    import numpy as np

    panels = np.ravel(axes)
    if len(panels) != len(titles):
        raise ValueError(f"titles: got {len(titles)}, expected one for each of {len(panels)} panels")
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title)


def say(text: str) -> None:
    """Show a sentence that holds measured numbers: as Markdown in a notebook, as text in a script."""
    if _in_notebook():
        from IPython.display import Markdown, display

        display(Markdown(text))
    else:
        print(text)


def slider(description: str, *, value: int | float, low: int | float, high: int | float, step: int | float = 1) -> Any:
    """ipywidgets slider for `play`, over whole numbers if ``value`` and ``step`` are; a fixed value where there is no Jupyter.

    Raises:
        ValueError: if ``value`` does not lie between ``low`` and ``high``.
    """
    if not low <= value <= high:
        raise ValueError(f"value: got {value!r}, expected a number from {low} to {high}")
    try:
        from ipywidgets import FloatSlider, IntSlider
    except ImportError:
        return SimpleNamespace(value=value)
    kind = IntSlider if isinstance(value, int) and isinstance(step, int) else FloatSlider
    return kind(value=value, min=low, max=high, step=step, description=description, continuous_update=True)


def choice(description: str, options: Sequence[str], value: str | None = None) -> Any:
    """ipywidgets menu for `play` (default: the first option); a fixed value where there is no Jupyter.

    Raises:
        ValueError: if ``value`` is none of the ``options``.
    """
    options = list(options)
    value = options[0] if value is None and options else value
    if value not in options:
        raise ValueError(f"value: got {value!r}, expected one of {options}")
    try:
        from ipywidgets import Dropdown
    except ImportError:
        return SimpleNamespace(value=value)
    return Dropdown(options=options, value=value, description=description)


def play(draw: Callable[..., None], **controls: Any) -> None:
    """Show ipywidgets controls above a figure that ``draw(**values)`` makes anew at each move.

    Outside a notebook it calls ``draw`` with the controls' first values, so that a script runs the same code; where no
    window can open, also with each control at its ends (a menu: at each option), so that a script finds what fails there.

    Args:
        draw: function that makes one matplotlib figure and shows it.
        **controls: a `slider`, `choice` or other ipywidgets control for each argument of ``draw``.

    Raises:
        TypeError: if ``draw`` is not a function, or a control has no value.
    """
    if not callable(draw):
        raise TypeError(f"draw: got {draw!r}, expected a function that draws a figure")
    for name, control in controls.items():
        if not hasattr(control, "value"):
            raise TypeError(f"{name}: got {control!r}, expected an ipywidgets control, such as IntSlider")
    if not _in_notebook():
        import matplotlib.pyplot as plt

        first = {name: control.value for name, control in controls.items()}
        draw(**first)
        for values in _ends(first, controls):
            draw(**values)
            plt.close("all")  # as a notebook does behind each cell
        return
    import ipywidgets
    from IPython.display import display

    picture = ipywidgets.interactive_output(draw, controls)
    for control in controls.values():
        control.style.description_width = "initial"
        control.layout.width = "min(100%, 26em)"
    picture.layout.min_height = "18em"
    display(ipywidgets.VBox([ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), picture]))


def _ends(first: dict[str, Any], controls: dict[str, Any]) -> list[dict[str, Any]]:
    """The first values with one control at a time at its end; none where figures would open as windows."""
    import matplotlib as mpl

    if mpl.get_backend().lower() != "agg":
        return []
    ends = {
        n: getattr(c, "options", [getattr(c, "min", first[n]), getattr(c, "max", first[n])])
        for n, c in controls.items()
    }
    return [first | {name: end} for name, some in ends.items() for end in some if end != first[name]]


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
