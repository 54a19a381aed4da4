"""Tables among metrics, and evaluations for people."""

import json
from pathlib import Path

import pytest

from harmonia.client.evaluation import (
    aggregate_scores,
    extract_model_key,
    sample_table,
    save_detailed_eval_table,
    score_table,
    stringify_thread,
)
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.recipe.context import RecipeContext
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread


def graded(text: str, *grades: Grade, source: str | None = "model_registry://m") -> EvalSample:
    """One sample."""
    return EvalSample(EvalSampleInteraction(StringThread([("user", text)]), source), list(grades), "set")


def test_a_table_grows_by_rows_and_columns() -> None:
    table = Table(["a", "b"]).add_row([1, "x"]).add_rows([[2.5, None]]).add_column("c", ["<", ">"])
    assert table.export() == (["a", "b", "c"], [["1", "x", "<"], ["2.5", "None", ">"]])
    assert Table().add_column("a", [1, 2]).add_column("b", [3, 4]).export() == (["a", "b"], [["1", "3"], ["2", "4"]])
    html = table.to_html_table()
    assert (
        html.startswith("<table>") and "<td>&lt;</td>" in html and "<" not in html.replace("<t", "").replace("</", "")
    )


def test_a_table_stays_rectangular() -> None:
    with pytest.raises(InvalidRequestError, match="a row has 1 cells; the table has 2 headers: a, b"):
        Table(["a", "b"]).add_row([1])
    with pytest.raises(InvalidRequestError, match="column 'c' has 1 cells; the table has 0 rows"):
        Table(["a", "b"]).add_column("c", [1])


def test_tables_do_not_share_headers() -> None:
    headers = ["a"]
    Table(headers).add_column("b", [])
    assert headers == ["a"] and Table().headers == []


def test_scores_by_model_and_grader() -> None:
    samples = [graded("one", Grade(1, "k"), Grade(0, "j")), graded("two", Grade(0, "k")), graded("three", source=None)]
    assert aggregate_scores(samples) == {
        "m": {
            "k": {"count": 2, "mean": 0.5, "std": pytest.approx(0.5**0.5), "min": 0.0, "max": 1.0},
            "j": {"count": 1, "mean": 0.0, "std": 0.0, "min": 0.0, "max": 0.0},
        },
        "unknown": {},
    }
    assert score_table(samples).export()[1] == [
        ["m", "k", "2", "0.5", "0.7071", "0", "1"],
        ["m", "j", "1", "0", "0", "0", "0"],
    ]


def test_keys_of_models_hold_no_secret() -> None:
    assert extract_model_key("openai://gpt?api_key=secret") == "gpt"
    assert extract_model_key("model_registry://a/b") == "a/b"
    assert extract_model_key() == extract_model_key("") == "unknown"


def test_a_thread_as_text() -> None:
    thread = StringThread([("user", "Hi")]).assistant("Hello")
    assert stringify_thread(thread) == "[user]\nHi\n\n[assistant]\nHello"
    assert stringify_thread(thread, sep="|") == "[user]\nHi|[assistant]\nHello"


def test_samples_are_shown_with_their_reasons() -> None:
    headers, rows = sample_table([graded("one", Grade(1, "k", "because")), graded("two", Grade(0, "j"))]).export()
    assert headers[1:] == ["dataset", "model", "conversation", "j", "k"]
    assert [row[1:] for row in rows] == [
        ["set", "m", "[user]\none", "", "1\nbecause"],
        ["set", "m", "[user]\ntwo", "0", ""],
    ]


def test_an_evaluation_is_saved(tmp_path: Path) -> None:
    samples = [graded("<script>", Grade(1, "k"))]
    folder = save_detailed_eval_table(samples, str(tmp_path))
    other = save_detailed_eval_table(samples, tmp_path)
    assert folder.parent == other.parent == tmp_path / "adaptive_eval_samples" and folder != other
    assert json.loads((folder / "aggregate_scores.json").read_text())["m"]["k"]["mean"] == 1.0
    about = json.loads((folder / "metadata.json").read_text())
    assert (about["num_samples"], about["model_keys"], about["grader_keys"]) == (1, ["m"], ["k"])
    page = (folder / "evaluation_samples.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_an_evaluation_lies_beside_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    source = "def log(context, samples): context.log_eval_result(samples)"
    recipe.write_text(source)
    recipe_globals: dict[str, object] = {"__name__": "recipe"}
    exec(compile(source, str(recipe), "exec"), recipe_globals)
    recipe_globals["log"](RecipeContext, [graded("one", Grade(1, "k"))])  # type: ignore[operator]
    (folder,) = (tmp_path / "adaptive_eval_samples").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "aggregate_scores.json",
        "evaluation_samples.html",
        "metadata.json",
    }


def test_no_samples_are_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no evaluation samples"):
        save_detailed_eval_table([], tmp_path)
    assert list(tmp_path.iterdir()) == []
