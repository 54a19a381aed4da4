"""Recipes that people brought, and their code."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from harmonia.server.db.base import MAX_KEY, Base, Row


class RecipeCode(Base):
    """The files of one version of a recipe: a job keeps the version that it was made with."""

    __tablename__ = "recipe_codes"

    content_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the files' names and contents, in hexadecimal."""
    archive: Mapped[bytes] = mapped_column(LargeBinary)
    """A zip."""


class Recipe(Row, Base):
    """A program that trains or evaluates, in a project."""

    __tablename__ = "recipes"
    __table_args__ = (UniqueConstraint("project_id", "key"),)

    project_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    key: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """None once it was deleted, so that another may have it."""
    name: Mapped[str] = mapped_column(String(MAX_KEY))
    description: Mapped[str] = mapped_column(Text, default="")
    labels: Mapped[list[Any]] = mapped_column(default=list)
    """Pairs of key and value."""
    content_hash: Mapped[str] = mapped_column(ForeignKey("recipe_codes.content_hash"), index=True)
    files: Mapped[list[Any]] = mapped_column(default=list)
    """Their paths."""
    entrypoint: Mapped[str] = mapped_column(String(MAX_KEY))
    """The file with `@recipe_main`."""
    config_entrypoint: Mapped[str | None] = mapped_column(String(MAX_KEY))
    """The file with its input."""
    json_schema: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Of its input."""
    created_by: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("users.id"))
    updated_at: Mapped[int | None] = mapped_column(BigInteger)
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)
