"""nbgrader's rules for the exercise sheets; teaching/README.md says how a course of your own builds on them."""

from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor


class DropTags(NbGraderPreprocessor):
    """Removes the tags of a submission's cells: a test cell tagged ``skip-execution`` would earn all its points."""

    def preprocess_cell(self, cell, resources, cell_index):
        """The cell without tags."""
        cell.metadata.pop("tags", None)
        return cell, resources


class HideHiddenTests(ClearHiddenTests):
    """Keeps hidden tests out of the feedback: their lines, and what a traceback or a print would show of them."""

    def preprocess_cell(self, cell, resources, cell_index):
        """Of a cell that holds hidden tests, leave the visible tests and the error's own message."""
        hidden = self.begin_test_delimeter in cell.source
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if hidden and cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type == "error"]
            for output in cell.outputs:
                output.traceback = [f"{output.ename}: {output.evalue}" if output.evalue else output.ename]
        return cell, resources


c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "refimpl"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
# The text twin of a sheet holds its solutions: whatever is not ignored here is copied into the release.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "*.py", "jupytext.toml"]
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.Execute.timeout = 120
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    DropTags,
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.GenerateFeedback.preprocessors = [
    HideHiddenTests,
    "nbgrader.preprocessors.GetGrades",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
