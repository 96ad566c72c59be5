"""Sphinx' configuration of the book. Its source folder is assembled by tools/book.py, which writes book.json."""

import json
from pathlib import Path

from docutils import nodes

settings = json.loads((Path(__file__).parent / "book.json").read_text(encoding="utf-8"))

project = settings["title"]
author = "The course authors"
language = "en"
extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton"]
exclude_patterns = ["_static"]
highlight_language = "none"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"

mathjax_path = "mathjax/tex-mml-chtml.js"
mathjax3_config = {"options": {"enableAssistiveMml": True}, "chtml": {"displayAlign": "center"}}

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_favicon = "_static/mark.svg"
html_logo = "_static/mark.svg"
html_use_index = False
html_show_copyright = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": project},
    "repository_url": settings["repository"],
    "repository_branch": settings["branch"],
    "repository_provider": "github",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": True,
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "toc_title": "On this page",
    "navbar_persistent": [],
    "search_bar_text": "Search the course",
    "footer_content_items": "",
    "launch_buttons": {
        "notebook_interface": "jupyterlab",
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
        "jupyterhub_url": settings["hub"] or "",
    },
}
copybutton_selector = ", ".join(
    f"div.{name} pre" for name in ("cell_input", "highlight-none", "highlight-python", "highlight-bash")
)


def mark_columns(app, doctree, docname):
    """Give a table's cells the class `prose`, `phrase` or `word` after the longest text of their column."""
    for table in doctree.findall(nodes.tgroup):
        rows = [list(row.findall(nodes.entry)) for row in table.findall(nodes.row)]
        for column in zip(*rows, strict=False):
            length = max(len(entry.astext()) for entry in column)
            for entry in column:
                entry["classes"].append("prose" if length > 45 else "phrase" if length > 16 else "word")


def setup(app):
    app.connect("doctree-resolved", mark_columns)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
