"""Finding the function that a recipe begins with."""

import re
import sys
from pathlib import Path

import pytest

from harmonia.client.recipe import Recipe, load_recipe
from harmonia.errors import InvalidRequestError
from tests.unit.recipe.conftest import WriteRecipe

HEAD = "from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main\n"
CONFIG = HEAD + "class Config(InputConfig):\n    steps: int = 3\n"
MAIN = CONFIG + "@recipe_main\nasync def main(config: Config, ctx: RecipeContext):\n    return config.steps, ctx\n"


async def called(recipe: Recipe) -> object:
    """What the recipe returns for the defaults of its config."""
    return await recipe(None, recipe.config_class() if recipe.config_class else None)


async def test_file(write: WriteRecipe) -> None:
    recipe = load_recipe(write({"my-recipe.v2.py": MAIN}) / "my-recipe.v2.py")
    assert (recipe.config_parameter, recipe.context_parameter) == ("config", "ctx")
    assert recipe.config_class and recipe.config_class.__name__ == "Config"
    assert await called(recipe) == (3, None)


async def test_folder_with_relative_and_sibling_imports(write: WriteRecipe) -> None:
    folder = write(
        {
            "main.py": HEAD
            + "from .numbers_of_mine import ONE\nfrom .deep.inside import TWO\nimport beside\nimport from_src\n"
            + "@recipe_main\ndef main():\n    import late\n"
            + "    return ONE, TWO, beside.THREE, from_src.FOUR, late.FIVE\n",
            "numbers_of_mine.py": "ONE = 1\n",
            "deep/inside.py": "from ..numbers_of_mine import ONE\nTWO = ONE + 1\n",
            "beside.py": "THREE = 3\n",
            "src/from_src.py": "FOUR = 4\n",
            "late.py": "FIVE = 5\n",
        }
    )
    assert await called(load_recipe(folder)) == (1, 2, 3, 4, 5)


async def test_entrypoint_in_a_package_below(write: WriteRecipe) -> None:
    folder = write(
        {
            "__init__.py": "NAME = 'whole'\n",
            "app/__init__.py": "",
            "app/start.py": HEAD + "from .. import NAME\nfrom .own import X\n"
            "@recipe_main\ndef main():\n    return NAME, X\n",
            "app/own.py": "X = 7\n",
        }
    )
    assert await called(load_recipe(folder, "app/start.py")) == ("whole", 7)


async def test_changed_recipes_are_read_anew_and_do_not_mix(write: WriteRecipe) -> None:
    main = HEAD + "import settings_beside\n@recipe_main\ndef main():\n    return settings_beside.X\n"
    folder = write({"a/main.py": main, "a/settings_beside.py": "X = 1\n", "b/main.py": main})
    write({"b/settings_beside.py": "X = 'another'\n"})
    assert await called(load_recipe(folder / "a")) == 1
    assert await called(load_recipe(folder / "b")) == "another"
    write({"a/settings_beside.py": "X = 22222\n"})
    assert await called(load_recipe(folder / "a")) == 22222
    assert str(folder / "b") not in sys.path


async def test_annotations_as_text(write: WriteRecipe) -> None:
    folder = write({"main.py": "from __future__ import annotations\n" + MAIN})
    assert await called(load_recipe(folder)) == (3, None)


async def test_any_order_positional_only_defaults_and_none_at_all(write: WriteRecipe) -> None:
    folder = write(
        {
            "order.py": CONFIG + "@recipe_main\ndef main(c: RecipeContext, x: Config, /):\n    return x.steps\n",
            "default.py": CONFIG + "@recipe_main\ndef main(n=5, *, x: Config):\n    return n, x.steps\n",
            "none.py": HEAD + "@recipe_main\ndef main():\n    return 'ran'\n",
        }
    )
    assert await called(load_recipe(folder / "order.py")) == 3
    assert await called(load_recipe(folder / "default.py")) == (5, 3)
    recipe = load_recipe(folder / "none.py")
    assert (recipe.config_class, recipe.context_parameter) == (None, None)
    assert await called(recipe) == "ran"


async def test_own_function_comes_before_imported_ones(write: WriteRecipe) -> None:
    other = HEAD + "@recipe_main\ndef other():\n    return 'other'\n"
    folder = write(
        {
            "other.py": other,
            "both.py": HEAD + "from other import other\n@recipe_main\ndef main():\n    return 'own'\n",
            "only.py": "from other import other\n",
        }
    )
    assert await called(load_recipe(folder / "both.py")) == "own"
    assert await called(load_recipe(folder / "only.py")) == "other"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def main(): ...\n", "main.py has no @recipe_main"),
        (HEAD + "@recipe_main\ndef a(): ...\n@recipe_main\ndef b(): ...\n", "2 functions with @recipe_main: a.., b"),
        (HEAD + "@recipe_main\ndef main(x): ...\n", "nothing fills parameter 'x' of main"),
        (HEAD + "@recipe_main\ndef main(x: int): ...\n", "nothing fills parameter 'x'"),
        (HEAD + "@recipe_main\ndef main(a: RecipeContext, b: RecipeContext): ...\n", "'a' and 'b'"),
        (HEAD + "@recipe_main\ndef main(a: 'Nothing'): ...\n", "'Nothing' is not defined"),
        (HEAD + "import sys\n@recipe_main\ndef main(a: 'sys.nothing'): ...\n", "has no attribute 'nothing'"),
        (HEAD + "@recipe_main\nasync def main(a: RecipeContext):\n    yield\n", "main.. has a `yield`"),
        (HEAD + "from functools import partial\nmain = recipe_main(partial(print))\n", "belongs above a function"),
        ("import sys\nsys.exit(0)\n", "main.py ends the program while it is imported .exit code 0"),
        ("import nothing_of_that_name\n", "cannot be imported: ModuleNotFoundError: No module named 'nothing_of"),
        ("def broken(:\n", r"cannot be imported: SyntaxError: .*main.py, line 1"),
    ],
)
def test_what_is_wrong_is_named(write: WriteRecipe, text: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        load_recipe(write({"main.py": text}))


def test_missing_files_are_named(write: WriteRecipe) -> None:
    folder = write({"notes.txt": "", "other.py": MAIN})
    with pytest.raises(InvalidRequestError, match=r"no recipe .*/recipes/main.py; its folder needs a file main.py"):
        load_recipe(folder)
    with pytest.raises(InvalidRequestError, match=r"give a \.py file or a folder"):
        load_recipe(folder / "none.py")
    with pytest.raises(InvalidRequestError, match=r"notes.txt is no Python file"):
        load_recipe(folder / "notes.txt")


def test_exceptions_of_the_recipe_stay_its_own(write: WriteRecipe) -> None:
    with pytest.raises(ZeroDivisionError):
        load_recipe(write({"main.py": "1 / 0\n"}))


def test_functions_are_recipes_too() -> None:
    def main(): ...

    assert re.search(r"main", Recipe.of(main).name)
    assert Path(Recipe.of(main, "x/y").name).name == "y"
