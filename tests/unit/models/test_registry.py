"""The registry: keys with slashes, bad keys and unknown ones, and saves that are whole or not there."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.errors import InvalidRequestError, UnknownModelError
from harmonia.models import atomic
from harmonia.models.atomic import read_whole, replacing, surviving
from harmonia.models.registry import ModelRegistry

BAD_KEYS = ["", "/etc/passwd", "a//b", "a/", "..", "a/../b", "./a", ".hidden", "a/.b", "a\nb", "a\0b", "\ud800", "a\\b"]


def save(path: Path, text: str) -> None:
    with replacing(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_text(text)


def text_of(path: Path) -> str:
    return (path / "deep" / "text").read_text()


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(tmp_path / "models")


def test_keys_that_begin_with_each_other(registry):
    keys = ["a", "a/b", "a/b/c", "a%2Fb", "a%", "checkpoints/local/checkpoint-20"]
    for key in keys:
        save(registry.path_for(key), key)
    assert registry.keys() == sorted(keys)
    assert [text_of(registry.resolve(f"model_registry://{key}")) for key in keys] == keys


@given(st.lists(st.text(alphabet="ab%2F/.- é", max_size=8), max_size=2, unique=True))
def test_different_keys_have_different_folders(keys):
    registry = ModelRegistry("anywhere")
    paths = []
    for key in keys:
        try:
            paths.append(registry.path_for(key))
        except InvalidRequestError:
            continue
    assert len(set(paths)) == len(paths)
    assert all(path.parent == Path("anywhere") for path in paths)


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused(registry, key):
    with pytest.raises(InvalidRequestError, match="model key"):
        registry.resolve(f"model_registry://{key}")


def test_a_key_too_long_for_the_file_system(registry):
    with pytest.raises(InvalidRequestError, match="too long: 300 bytes"):
        registry.path_for("k" * 300)
    save(registry.path_for("k" * 245), "fits")


def test_unknown_keys_name_the_nearest(registry):
    with pytest.raises(UnknownModelError, match="it is empty"):
        registry.resolve("model_registry://policy")
    for key in ("runs/policy-1", "runs/policy-2", "judge"):
        save(registry.path_for(key), key)
    with pytest.raises(
        UnknownModelError, match=r"no model 'runs/policy-3'.*nearest are 'runs/policy-2', 'runs/policy-1'"
    ):
        registry.resolve("model_registry://runs/policy-3")
    with pytest.raises(UnknownModelError, match=r"there is 'judge', 'runs/policy-1'"):
        registry.resolve("model_registry://zzzz")


def test_plain_paths_and_what_was_put_there_by_hand(registry, tmp_path):
    outside = tmp_path / "outside"
    save(outside, "linked")
    registry.folder.mkdir()
    (registry.folder / "linked").symlink_to(outside)
    (registry.folder / "small.gguf").touch()
    assert registry.resolve(str(outside)) == outside
    assert registry.keys() == ["linked", "small.gguf"]
    save(registry.path_for("linked"), "saved")
    assert (text_of(registry.resolve("model_registry://linked")), text_of(outside)) == ("saved", "linked")
    with pytest.raises(UnknownModelError, match="no such file or folder"):
        registry.resolve(str(tmp_path / "absent"))


def test_an_error_leaves_the_old_one_and_nothing_else(registry):
    target = registry.path_for("a")
    save(target, "old")
    with pytest.raises(FileNotFoundError), replacing(target) as folder:
        (folder / "absent" / "half").touch()
    assert text_of(target) == "old"
    assert os.listdir(registry.folder) == ["a"]


def test_leftovers_of_a_crash_go_and_running_saves_stay(registry):
    registry.folder.mkdir()
    leftover = registry.folder / ".saving-0123"
    (leftover / "sub").mkdir(parents=True)
    (registry.folder / ".saving-4567").symlink_to("elsewhere")
    with replacing(registry.path_for("slow")) as running:
        (running / "file").touch()
        save(registry.path_for("quick"), "quick")
        assert sorted(os.listdir(registry.folder)) == [running.name, "quick"]
        assert (running / "file").exists()
        assert registry.keys() == ["quick"]
    assert registry.keys() == ["quick", "slow"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_many_saves_at_once(registry, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "exchange", cannot_exchange)
    jobs = [(key, str(number)) for number in range(30) for key in ("a", "a/b")]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda job: save(registry.path_for(job[0]), job[1]), jobs))
    assert sorted(os.listdir(registry.folder)) == ["a", "a%2Fb"]
    assert all(int(text_of(registry.path_for(key))) >= 20 for key in ("a", "a/b"))


def cannot_exchange(left: Path, right: Path) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_file_systems_that_cannot_exchange_folders(registry, monkeypatch):
    monkeypatch.setattr(atomic, "exchange", cannot_exchange)
    target = registry.path_for("a")
    for text in ("first", "second"):
        save(target, text)
    assert text_of(target) == "second"
    assert os.listdir(registry.folder) == ["a"]


def test_a_crash_between_the_two_steps_there(registry):
    target = registry.path_for("a/b")
    save(target, "old")
    target.rename(target.with_name(f".replaced-{target.name}"))
    assert registry.keys() == ["a/b"]
    assert text_of(registry.resolve("model_registry://a/b")) == "old"
    save(registry.path_for("other"), "x")
    assert text_of(surviving(target)) == "old"
    save(target, "new")
    assert text_of(target) == "new"
    assert sorted(os.listdir(registry.folder)) == ["a%2Fb", "other"]


def test_a_reader_never_mixes_old_and_new(registry):
    target = registry.path_for("a")
    save(target, "old")
    seen = []

    def read(folder: Path) -> list[str]:
        first = text_of(folder)
        if not seen:
            save(target, "new")
        seen.append(first)
        return [first, text_of(folder)]

    assert read_whole(target, read) == ["new", "new"]
    assert seen == ["old", "new"]


def test_more_bytes_than_are_free(registry):
    target = registry.path_for("a")
    save(target, "old")
    says = r"cannot save .*a: it needs 1,152,921,504,606,846,976 bytes"
    with pytest.raises(InvalidRequestError, match=says) as caught, replacing(target, num_bytes=1 << 60):
        pytest.fail("it began")
    assert caught.value.details["free_bytes"]
    assert text_of(target) == "old"


def test_a_registry_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    target = ModelRegistry(tmp_path / "file" / "models").path_for("a")
    with pytest.raises(InvalidRequestError, match=r"cannot save .*models/a: Not a directory"):
        save(target, "new")


def test_no_torch_is_imported():
    modules = "registry, harmonia.models.source, harmonia.models.adaptive_info, harmonia.models.tokenizer_export"
    code = f"import sys, harmonia.models.{modules}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_models_are_removed(registry):
    for key in ("runs/one", "runs/two"):
        save(registry.path_for(key), "weights")
    registry.remove("runs/one")
    registry.remove("never/was")
    assert registry.keys() == ["runs/two"]
    assert not [path for path in registry.folder.iterdir() if path.name.startswith(".")]


def test_checkpoints_are_not_proposed(registry):
    for key in ("checkpoints/job/policy-33", "policy-3"):
        save(registry.path_for(key), "weights")
    with pytest.raises(UnknownModelError, match=r"nearest are 'policy-3'$"):
        registry.resolve("model_registry://policy-33")
    with pytest.raises(UnknownModelError, match="nearest are 'checkpoints/job/policy-33'"):
        registry.resolve("model_registry://checkpoints/job/policy-34")
