"""As a reader in a notebook does it: an estimator of one's own, compared, and its table read by three libraries."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorials" / "estimator.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after it ran, and its folder."""
    nbclient = pytest.importorskip("nbclient", reason="the notebook isn't run here: pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="the notebook isn't run here: pip install -e '.[test]'")
    import nbformat.v4 as notebooks

    definition, comparison = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:2]
    own = definition.removeprefix("# mine.py\n").strip()
    shorter = comparison.replace("seeds=6, steps=10", "seeds=3, steps=2, jobs=1").strip()
    assert shorter != comparison.strip()
    assert len(f"%%writefile mine.py\n{own}\n{shorter}".replace("\n\n", "\n").replace("\n\n", "\n").split("\n")) <= 15
    cells = [f"%%writefile mine.py\n{own}", shorter, "results"]
    notebook = notebooks.new_notebook(cells=[notebooks.new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}})
    return client.execute(), folder


def test_an_estimator_of_ones_own_is_compared_in_a_notebook(executed):
    notebook, folder = executed
    printed = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "verdict" in printed and "reward" in printed
    (shown,) = [output for output in notebook.cells[2].outputs if output.output_type == "execute_result"]
    assert "<table" in shown["data"]["text/html"] and "mine.py:Centred" in shown["data"]["text/html"]
    assert (folder / "mine" / "report.html").is_file()


def test_pandas_polars_and_duckdb_read_the_same_numbers(executed):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    path = executed[1] / "mine" / "metrics.parquet"
    ours, theirs = pd.read_parquet(path), polars.read_parquet(path)
    names, third = list(ours.columns), duckdb.sql(f"SELECT * FROM '{path}'")
    assert theirs.columns == third.columns == names and len(ours) > 50
    rows = [
        tuple(None if pd.isna(value) else value for value in row) for row in ours.itertuples(index=False, name=None)
    ]

    def same(found):
        return [tuple(None if pd.isna(value) else value for value in row) for row in found] == rows

    assert same(theirs.rows()) and same(third.fetchall())
    mean = ours[ours["metric"] == "reward"].groupby("estimator")["value"].mean()
    again = theirs.filter(polars.col("metric") == "reward").group_by("estimator").agg(polars.col("value").mean())
    assert dict(again.rows()) == pytest.approx(mean.to_dict())
