"""``rlhf study report``: the paper's figures and tables from a study's results, and whether more compute helped."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.run_layout import REPORT_FILE
from rlhf_lightning.runs.files import write_whole
from rlhf_lightning.study import figures, reward_figures, training_figures
from rlhf_lightning.study.drawing import LackingError
from rlhf_lightning.study.paper import FINDINGS
from rlhf_lightning.study.results import Results
from rlhf_lightning.study.spec import REPORT_FOLDER, ROLES
from rlhf_lightning.study.state import load_study
from rlhf_lightning.study.tables import lever_table, lever_text, markdown, paper_table_1, table_1

FIGURES: dict[str, Callable[[Results], Figure]] = {
    "compute": figures.compute,
    "figure_1_left": figures.figure_1_left,
    "figure_1_middle": figures.figure_1_middle,
    "figure_2": figures.figure_2,
    "figure_3": figures.figure_3,
    "figure_4": training_figures.figure_4,
    "figure_5": training_figures.figure_5,
    "figure_6_left": reward_figures.figure_6_left,
    "figure_6_right": reward_figures.figure_6_right,
}


class StudyReport:
    """Draws what the finished pieces of a study allow, and says what it lacks for the rest.

    Args:
        folder: The study's. The report goes into ``report/``: ``report.md``, a PNG a figure, and the tables that they
            are drawn from as CSV.

    Raises:
        ConfigError: If nothing that the report reads is finished.
    """

    def __init__(self, folder: str) -> None:
        self.study = load_study(folder)
        self.out = self.study.folder / REPORT_FOLDER

    def has_something(self) -> bool:
        """Whether anything that the report reads is finished."""
        return any(self.study.with_role(role) for role in ROLES)

    def run(self) -> None:
        """Writes the report."""
        results = Results(self.study)
        if not self.has_something():
            raise ConfigError(
                f"{self.study.folder}: nothing to report yet: no part with role policy or best_of_n is finished"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        steps, file = lever_text(self._tables(results)), self.out / REPORT_FILE
        sections = [self._figure(results, name) for name in FIGURES]
        text = "\n\n".join(["# Does more compute help?", steps, *sections, self._table_1(results)])
        write_whole(file, text + "\n")
        Console().print(f"{steps}\n{file}", markup=False, highlight=False, soft_wrap=True)

    def _tables(self, results: Results) -> pd.DataFrame:
        levers = lever_table(results)
        tables = {"policies": results.policies, "training": results.training, "best_of_n": results.best_of_n}
        for name, table in {**tables, "levers": levers}.items():
            table.to_csv(self.out / f"{name}.csv", index=False)
        return levers

    def _figure(self, results: Results, name: str) -> str:
        """A section of the report: the picture, or what it lacks."""
        file = self.out / f"{name}.png"
        heading = f"## {_title(name)}\n\n"
        said = f"\n\nThe paper: {FINDINGS[name]}." if name in FINDINGS else ""
        try:
            FIGURES[name](results).savefig(file, dpi=130)
        except LackingError as lacks:
            file.unlink(missing_ok=True)
            return f"{heading}Not drawn: {lacks}.{said}"
        return f"{heading}![{_title(name)}]({file.name}){said}"

    def _table_1(self, results: Results) -> str:
        heading = "## Table 1\n\n"
        said = f"The paper: {FINDINGS['table_1']}. Its own tasks and models:\n\n{markdown(paper_table_1())}"
        try:
            return f"{heading}{markdown(table_1(results))}\n\n{said}"
        except LackingError as lacks:
            return f"{heading}Not made: {lacks}.\n\n{said}"


def _title(name: str) -> str:
    return name.replace("_", " ").replace("figure", "Figure").replace("compute", "Compute")
