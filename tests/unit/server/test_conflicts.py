"""What callers hear when somebody else was faster by a moment."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.exc import IntegrityError

from harmonia.server.db.database import CONFLICT
from harmonia.server.rest.errors import install_handlers


def test_a_broken_constraint_is_a_conflict_and_tells_nothing_of_the_row() -> None:
    app = FastAPI()
    install_handlers(app)

    @app.post("/things")
    async def make() -> None:
        raise IntegrityError("INSERT INTO things VALUES (?)", {"secret": "hush"}, Exception("UNIQUE failed: hush"))

    answer = TestClient(app).post("/things")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["message"]) == ("conflict", "invalid_request_error", CONFLICT)
    assert "hush" not in answer.text
