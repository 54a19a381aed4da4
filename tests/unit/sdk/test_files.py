"""Recipes as they are packed, and parts of large files."""

import io
import zipfile
from pathlib import Path

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.sdk.files import default_recipe_key, pack_recipe, part_size_of, read_parts

MIB, GIB = 1024**2, 1024**3


@pytest.mark.parametrize(
    ("size", "part"),
    [(6 * MIB, 5 * MIB), (500 * MIB, 10 * MIB), (10 * GIB, 50 * MIB), (50 * GIB, 100 * MIB), (976 * GIB, 100 * MIB)],
)
def test_parts_grow_with_the_file(size: int, part: int) -> None:
    assert part_size_of(size) == part
    assert -(-size // part) <= 10_000


def test_a_file_of_too_many_parts_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="split the file"):
        part_size_of(977 * GIB)


def test_parts_together_are_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(range(10)))
    assert list(read_parts(file, 4, frozenset())) == [(1, bytes(range(4))), (2, bytes(range(4, 8))), (3, b"\x08\x09")]
    assert [number for number, _ in read_parts(file, 5, frozenset({1}))] == [2]


def test_a_folder_is_packed_without_what_it_ignores(tmp_path: Path) -> None:
    recipe = tmp_path / "My_Recipe"
    for name in ("main.py", "a/b.py", "a/secret.key", "keep.key", "data/x", "a/data/y", "__pycache__/z.pyc", ".git/c"):
        (recipe / name).parent.mkdir(parents=True, exist_ok=True)
        (recipe / name).write_text("x")
    (recipe / ".gitignore").write_text("# words\n*.key\n!keep.key\n/data\n")
    packed = pack_recipe(recipe)
    names = set(zipfile.ZipFile(io.BytesIO(packed.content)).namelist())
    assert names == {".gitignore", "main.py", "a/b.py", "keep.key", "a/data/y"}
    assert (packed.name, packed.media_type) == ("My_Recipe.zip", "application/zip")
    assert default_recipe_key(recipe) == "my-recipe"


@pytest.mark.parametrize(
    ("name", "problem"), [("nowhere", "does not exist"), ("x.txt", "no .py"), ("empty", "main.py")]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "x.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequestError, match=problem):
        pack_recipe(tmp_path / name)
