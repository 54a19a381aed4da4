"""Accelerated models on a server: a draft that is deployed answers as its target, with proposals that are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from adaptive_sdk import Adaptive as PublishedAdaptive

from harmonia.errors import InvalidRequestError, UnavailableError
from harmonia.sdk import Adaptive
from tests.integration.control.accelerating import (
    ASK,
    FAST,
    PROJECT,
    TARGET,
    accepted,
    ask,
    ask_until,
    client,
    register,
    serving_both,
    wait_until,
)
from tests.integration.control.conftest import Plane, on_both
from tests.integration.tiny_model import make_adapter, make_draft


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Plane]:
    with serving_both(tmp_path_factory.mktemp("plane"), tiny) as plane:
        yield plane


@pytest.fixture
def sdk(running: Plane) -> Iterator[Adaptive]:
    with client(running) as adaptive:
        yield adaptive


@on_both
def test_it_answers_as_its_target_in_fewer_steps(plane: Plane, tiny: Path, tmp_path: Path) -> None:
    register(plane, tiny, tmp_path / "drafts")
    published = PublishedAdaptive(base_url=plane.url, api_key=plane.api_key)
    with contextlib.closing(published), client(plane) as adaptive:
        published.set_default_project(PROJECT)
        deployed = published.models.deploy(model=FAST, num_draft_steps=4, wait=True)
        assert (deployed.key, deployed.model.online.value) == (FAST, "ONLINE")
        adaptive.models.deploy(TARGET, wait=True)
        plain, fast = ask(adaptive, TARGET), ask_until(adaptive, FAST, accepted)
        assert fast.choices[0].message.content == plain.choices[0].message.content
        again = published.chat.create(messages=ASK, model=FAST, temperature=0, max_tokens=40)
        assert again.choices[0].message.content == plain.choices[0].message.content
        assert accepted(plain) == 0
        assert fast.usage is not None and fast.usage.acceptance_rate == 1
        assert accepted(fast) > 0
        kept = str(fast.choices[0].completion_id)
        wait_until(lambda: adaptive.interactions.get(kept) is not None)
        told = adaptive.interactions.get(kept)
        assert told is not None and told.metadata.usage is not None
        assert told.metadata.usage.accepted_prediction_tokens == accepted(fast)
        assert told.metadata.usage.rejected_prediction_tokens == 0
        seen = published.interactions.get(kept, PROJECT)
        assert seen is not None and seen.metadata.timings["spec_dec_acceptance_rate"] == 1


def test_the_registry_shows_what_it_is(sdk: Adaptive) -> None:
    found, target = sdk.models.get(FAST), sdk.models.get(TARGET)
    assert found is not None and target is not None and found.backbone is not None
    assert (found.is_spec_dec_draft, target.is_spec_dec_draft, found.is_adapter) == (True, False, False)
    assert found.backbone.key == TARGET
    sdk.models.update_compute_config(TARGET, {"kv_cache_len": 4096})
    sdk.models.update_compute_config(FAST, {"max_seq_len": 256})
    config = sdk.models.get(FAST).compute_config  # type: ignore[union-attr]
    assert config is not None
    assert (config.kv_cache_len, config.max_seq_len) == (4096, 256)
    with pytest.raises(InvalidRequestError, match=f"it answers for the drafts {FAST}; delete them first"):
        sdk.models.delete(TARGET)


def test_what_cannot_be_registered_is_named(sdk: Adaptive, tiny: Path, tmp_path: Path) -> None:
    make_draft(tmp_path / "orphan", tiny, "gone")
    with pytest.raises(InvalidRequestError, match="orphan drafts for gone"):
        sdk.models.add(str(tmp_path / "orphan"), "orphan")
    stranger = make_draft(tmp_path / "copy", tiny, str(tiny))
    (stranger / "adaptive_info.json").unlink()
    make_draft(tmp_path / "far", tiny, str(stranger))
    with pytest.raises(InvalidRequestError, match="copy, which is not registered as a base model"):
        sdk.models.add(str(tmp_path / "far"), "far")
    make_draft(tmp_path / "circle", tiny, str(tmp_path / "circle"))
    with pytest.raises(InvalidRequestError, match="which is a draft itself"):
        sdk.models.add(str(tmp_path / "circle"), "circle")
    make_draft(tmp_path / "tuned", tiny, str(make_adapter(tmp_path / "adapter", base=tiny)))
    with pytest.raises(InvalidRequestError, match=r"adapter, which is not registered as a base model or an adapter"):
        sdk.models.add(str(tmp_path / "tuned"), "tuned")
    other = make_draft(tmp_path / "other", tiny, TARGET)
    words = other / "tokenizer.json"
    words.write_text(words.read_text().replace("<|im_start|>", "<|begin|>"))
    sdk.models.add(str(other), "other")
    with pytest.raises(UnavailableError, match="has another tokenizer than"):
        sdk.models.deploy("other", wait=True)
    sdk.models.terminate("other", force=True)
