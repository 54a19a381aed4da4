"""A server under load is killed at random moments: what it said was done is there, and nothing is there twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.integration.control.starting import Started, chat, started

CALLERS = 6
RECIPE = """
import asyncio
from harmonia.client.recipe import RecipeContext, recipe_main

@recipe_main
async def main(ctx: RecipeContext):
    await asyncio.sleep(600)
"""
JOB = """mutation ($input: JobInput!) { createJob(input: $input) { id } }"""


class Load:
    """Callers who ask until the server is gone, and what they were told was done."""

    def __init__(self, up: Started, api_key: str) -> None:
        self._up = up
        self._api_key = api_key
        self.asked = 0
        self.finished: list[str] = []
        """Completions whose answer came whole."""
        self.jobs: list[str] = []
        self.enough = threading.Event()

    def run(self, number: signal.Signals, moment: random.Random) -> None:
        """Ask, and end the server at a random moment."""
        with ThreadPoolExecutor(CALLERS + 1) as pool:
            callers = [pool.submit(self._chat, caller) for caller in range(CALLERS)]
            callers.append(pool.submit(self._submit_jobs))
            assert self.enough.wait(120), "nothing was answered"
            time.sleep(moment.uniform(0.0, 1.0))
            self._up.end(number)
            for caller in callers:
                caller.result()

    def _chat(self, caller: int) -> None:
        with self._up.client(self._api_key) as client:
            while True:
                self.asked += 1
                body = chat("default/tiny", f"caller {caller}", max_tokens=4, stream=caller % 2 == 0)
                try:
                    self.finished += (_streamed if caller % 2 == 0 else _whole)(client, body)
                except httpx.HTTPError:
                    return  # the server is gone
                if len(self.finished) >= 4 * CALLERS:
                    self.enough.set()

    def _submit_jobs(self) -> None:
        wanted = {"recipe": "sleeper", "project": "default", "args": {}, "numGpus": 1}
        with self._up.client(self._api_key) as client:
            while True:
                try:
                    answer = client.post("/api/graphql", json={"query": JOB, "variables": {"input": wanted}})
                except httpx.HTTPError:
                    return
                if answer.status_code == 200:
                    self.jobs.append(answer.json()["data"]["createJob"]["id"])
                time.sleep(0.2)


def _whole(client: httpx.Client, body: dict[str, object]) -> list[str]:
    answer = client.post("/api/v1/chat/completions", json=body)
    # While it ends in order, a server refuses what is new.
    return [answer.json()["choices"][0]["completion_id"]] if answer.status_code == 200 else []


def _streamed(client: httpx.Client, body: dict[str, object]) -> list[str]:
    found: set[str] = set()
    with client.stream("POST", "/api/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                return list(found)
            if line.startswith("data: "):
                found |= {choice["completion_id"] for choice in json.loads(line[6:]).get("choices", ())}
    return []


def kept(folder: Path, table: str) -> Counter[str]:
    """The ids of the rows that are in the database of a server that has ended."""
    with sqlite3.connect(folder / "harmonia.db") as database:
        found = Counter(str(uuid.UUID(row[0])) for row in database.execute(f"SELECT id FROM {table}"))
    database.close()
    return found


@pytest.mark.timeout(600)
def test_what_was_done_is_there_exactly_once(tmp_path: Path, tiny: Path) -> None:
    folder, moment = tmp_path / "data", random.Random()
    finished: list[str] = []
    jobs: list[str] = []
    asked = 0
    api_key = ""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with started(folder, str(tiny), OMP_NUM_THREADS="1") as up:
            is_first = not api_key
            api_key = api_key or up.api_key
            _wait_online(up, api_key)
            if is_first:
                _upload_recipe(up, api_key)
            load = Load(up, api_key)
            load.run(number, moment)
        finished += load.finished
        jobs += load.jobs
        asked += load.asked
        if number is signal.SIGTERM:
            assert not list((folder / "journal").rglob("*.journal")), "a server that ends in order leaves nothing"
            assert set(finished) <= kept(folder, "completions").keys()

    with started(folder) as up:  # writes what the last one left
        assert up.end(signal.SIGTERM) == 0
    completions = kept(folder, "completions")
    assert set(finished) <= completions.keys()
    assert max(completions.values()) == 1 and len(completions) <= asked
    assert len(finished) == len(set(finished)) >= 2 * 4 * CALLERS
    assert set(jobs) <= kept(folder, "jobs").keys() and jobs


def _upload_recipe(up: Started, api_key: str) -> None:
    with up.client(api_key) as client:
        query = """mutation ($project: IdOrKey!, $file: Upload!) {
          createCustomRecipe(project: $project, input: {key: "sleeper", name: "Sleeper"}, file: $file) { key } }"""
        operations = {"query": query, "variables": {"project": "default", "file": None}}
        answer = client.post(
            "/api/graphql",
            data={"operations": json.dumps(operations), "map": json.dumps({"0": ["variables.file"]})},
            files={"0": ("sleeper.py", RECIPE.encode(), "text/x-python")},
        )
    assert answer.json().get("data"), answer.text


def _wait_online(up: Started, api_key: str) -> None:
    give_up = time.monotonic() + 180
    with up.client(api_key) as client:
        while time.monotonic() < give_up:
            answer = client.post("/api/v1/chat/completions", json=chat("default/tiny", "ready?", max_tokens=1))
            if answer.status_code == 200:
                return
            time.sleep(0.2)
    raise AssertionError(answer.text)
