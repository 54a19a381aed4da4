"""The pools of a machine as settings describe them, and who gets which device."""

import os
import uuid
from pathlib import Path

import pytest
from pydantic import ValidationError

from harmonia.config import WorkerConfig
from harmonia.config.control import Compute
from harmonia.config.worker import cores_of
from harmonia.errors import InvalidRequestError
from harmonia.server.services.jobs.jobs import NewJob
from harmonia.server.services.jobs.limits import check_limits, explained
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.devices import Device, Pool, find_gpus, find_pools

GPUS = tuple(Device(str(number), "NVIDIA H100") for number in range(4))
CORE = min(os.sched_getaffinity(0))


def pools(*described: dict[str, object]) -> tuple[Pool, ...]:
    return find_pools(Compute.model_validate({"pools": described}), GPUS)


def test_one_pool_has_everything_when_nothing_is_said() -> None:
    (pool,) = find_pools(Compute(), GPUS)
    assert (pool.key, pool.devices, pool.device_types) == ("default", GPUS, "4 x NVIDIA H100")
    assert not pool.is_shared
    (pool,) = find_pools(Compute(), ())
    assert ([device.place for device in pool.devices], pool.device_types, pool.is_shared) == (["cpu"], "CPU", True)


def test_devices_are_shared_out_as_described() -> None:
    serving, jobs, cpu = pools(
        {"key": "serving", "devices": [0, 1], "capabilities": ["INFERENCE"]},
        {"key": "jobs", "name": "For jobs", "devices": ["3", 2], "capabilities": ["JOB"]},
        {"key": "cpu", "devices": [f"cpu:{CORE}"]},
    )
    assert [device.place for device in serving.devices] == ["0", "1"]
    assert ([device.place for device in jobs.devices], jobs.name) == (["3", "2"], "For jobs")
    assert (cpu.capabilities, cpu.device_types) == (("INFERENCE", "JOB"), f"CPU cores {CORE}")


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ([{"key": "a", "devices": [4]}], "pool 'a' has GPU 4, and this machine has 4"),
        ([{"key": "a", "devices": [0]}, {"key": "b", "devices": [1, 0]}], "'0' of pool 'b' is used by pool 'a' too"),
        ([{"key": "a", "devices": [0, 0]}], "'0' of pool 'a' is used by pool 'a' too"),
        ([{"key": "a", "devices": [0, "cpu"]}], "GPUs and the CPU"),
        ([{"key": "a", "devices": ["tpu"]}], "pool 'a' has 'tpu'"),
        ([{"key": "a", "devices": ["cpu:99999"]}], "cpu:99999"),
        ([{"key": "a", "devices": ["cpu:"]}], "cpu:"),
        ([{"key": "a", "devices": ["cpu"]}, {"key": "b", "devices": [f"cpu:{CORE}"]}], "used by pool 'a' too"),
    ],
)
def test_what_cannot_be_is_named(described: list[dict[str, object]], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as error:
        pools(*described)
    assert "ADAPTIVE_COMPUTE__POOLS" in error.value.message


@pytest.mark.parametrize(
    ("described", "says"),
    [
        ([{"key": "a", "devices": []}], "devices"),
        ([{"key": "A b", "devices": [0]}], "key"),
        ([{"key": "a", "devices": [0], "capabilities": ["TRAINING"]}], "capabilities"),
        ([{"key": "a", "devices": [0]}, {"key": "a", "devices": [1]}], "the same key"),
        ([{"key": "a", "devices": [True]}], "devices"),
    ],
)
def test_settings_that_are_none_are_refused(described: list[dict[str, object]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        pools(*described)


def test_gpus_are_found_with_their_names(tmp_path: Path) -> None:
    for place, name in (("0000:01:00.0", "NVIDIA A"), ("0000:02:00.0", "NVIDIA B")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
    assert find_gpus(tmp_path, "1") == (Device("1", "NVIDIA B"),)
    assert [device.place for device in find_gpus(tmp_path, "1,0")] == ["1", "0"]
    assert find_gpus(tmp_path, "") == ()
    assert find_gpus(tmp_path / "nothing", "0") == ()


def test_a_place_names_cores() -> None:
    assert cores_of("cpu:0-2,5") == {0, 1, 2, 5}
    assert cores_of("cpu") is None
    assert cores_of("3") is None
    with pytest.raises(ValueError, match="x"):
        cores_of("cpu:x")


def held(allotments: Allotments, pool: str = "default") -> dict[str, tuple[int, ...]]:
    return {item.name: item.ranks for item in allotments.holdings(pool)}


def test_models_spread_over_devices_and_jobs_take_what_is_free() -> None:
    allotments = Allotments(find_pools(Compute(), GPUS[:3]))
    first, second = allotments.place("first", "default"), allotments.place("second", "default")
    assert (first, second) == GPUS[:2]
    one, two = uuid.uuid4(), uuid.uuid4()
    assert allotments.take(one, "default", 1) == (GPUS[2],)
    assert allotments.take(two, "default", 1) is None
    assert allotments.place("third", "default") == GPUS[0]  # beside another model, never beside a job
    assert held(allotments) == {"first": (0,), "second": (1,), "third": (0,), f"job/{one}": (2,)}
    allotments.keep([("first", "default")])
    assert allotments.take(two, "default", 1) == (GPUS[1],)
    allotments.release(one)
    assert held(allotments) == {"first": (0,), f"job/{two}": (1,)}


def test_a_worker_holds_its_device_until_it_has_ended() -> None:
    allotments, freed = Allotments(find_pools(Compute(), GPUS[:2])), list[int]()
    allotments.listen(lambda: freed.append(1))
    for model in ("first", "second"):
        device = allotments.place(model, "default")
        assert device is not None
        allotments.began(model, WorkerConfig(key=model, place=device.place))
    allotments.keep([("first", "default")])
    assert allotments.take(uuid.uuid4(), "default", 1) is None
    freed.clear()
    allotments.ended("second")
    assert freed
    assert allotments.take(uuid.uuid4(), "default", 1) == (GPUS[1],)
    assert allotments.models_in("default") == {"first"}


def test_the_only_device_of_a_pool_serves_and_runs_a_job() -> None:
    allotments = Allotments(find_pools(Compute(), ()))
    one = uuid.uuid4()
    assert allotments.take(one, "default", 1) is not None
    assert allotments.take(uuid.uuid4(), "default", 1) is None
    assert allotments.place("model", "default") is not None
    assert held(allotments) == {f"job/{one}": (0,), "model": (0,)}


def test_fewer_devices_that_serve_move_a_model_and_leave_room_for_jobs() -> None:
    allotments = Allotments(find_pools(Compute(), GPUS[:2]))
    allotments.place("first", "default")
    assert allotments.place("second", "default") == GPUS[1]
    allotments.set_serving("default", 1)
    assert allotments.place("second", "default") == GPUS[0]
    assert allotments.take(uuid.uuid4(), "default", 1) == (GPUS[1],)
    allotments.set_serving("default", 0)
    assert allotments.pools_for("second", ()) == []


def test_a_model_waits_while_jobs_hold_all_devices() -> None:
    allotments = Allotments(find_pools(Compute(), GPUS[:2]))
    jobs = [uuid.uuid4(), uuid.uuid4()]
    assert all(allotments.take(job, "default", 1) for job in jobs)
    assert allotments.place("model", "default") is None
    allotments.release(jobs[0])
    assert allotments.place("model", "default") is not None


def test_models_go_where_they_are_placed_else_where_there_is_room() -> None:
    described = ({"key": "a", "devices": [0]}, {"key": "b", "devices": [1]}, {"key": "c", "devices": [2]})
    allotments = Allotments(pools(*described[:2], {**described[2], "capabilities": ["JOB"]}))
    assert allotments.pools_for("model", {"b", "a", "gone"}) == ["a", "b"]
    assert allotments.pools_for("model", {"c"}) == []
    assert allotments.pools_for("model", ()) == ["a"]
    allotments.place("model", "a")
    assert allotments.pools_for("other", ()) == ["b"]
    assert allotments.pools_for("model", ()) == ["a"]  # where it is


def test_what_a_job_cannot_have_is_refused_with_both_numbers() -> None:
    (pool,) = pools({"key": "a", "devices": [0, 1]})
    job = {"recipe": "r", "project": "p", "args": {}}
    with pytest.raises(InvalidRequestError, match="numGpus is 3, and compute pool 'a' has 2 devices"):
        check_limits(NewJob(**job, num_gpus=3), pool)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="run on one device, so numGpus is 0 or 1, got 2"):
        check_limits(NewJob(**job, num_gpus=2), pool)  # type: ignore[arg-type]
    check_limits(NewJob(**job, num_gpus=1), pool)  # type: ignore[arg-type]


def test_a_lack_of_memory_names_the_limit() -> None:
    limited = NewJob(recipe="r", project="p", args={}, num_gpus=0, max_ram_gb=0.5)
    assert explained(limited, "MemoryError").startswith("the job reached its limit of 0.5 GiB of memory (maxRamGb)")
    assert explained(limited, "ValueError: x") == "ValueError: x"
    unlimited = NewJob(recipe="r", project="p", args={}, num_gpus=0)
    assert explained(unlimited, "MemoryError") == "MemoryError"
