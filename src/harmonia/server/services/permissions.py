"""What can be permitted, and the roles that are there from the beginning."""

from __future__ import annotations

PERMISSIONS: dict[str, str] = {
    "admin:manage_roles": "create and change roles",
    "admin:manage_teams": "create teams, and move users of other teams",
    "admin:manage_users": "create and delete users and service accounts",
    "admin:read_audit": "read who changed what",
    "model:create": "add models to the registry",
    "model:read": "see the models of the registry",
    "model:update": "change how models are served, terminate and delete them",
    "compute:read": "see compute pools",
    "compute:manage": "resize compute pools",
    "team:read": "see teams, users and roles",
    "team:manage_members": "add users to a team of one's own, and remove them",
    "team:manage_integrations": "set up notifications of a team",
    "project:create": "create projects",
    "project:read": "see a project and what it holds",
    "project:update": "change a project and its models, deploy them, run A/B tests",
    "project:share": "share a project with teams",
    "project:infer": "ask the models of a project",
    "project:adapt": "run recipes and jobs",
    "dataset:create": "upload and delete data sets",
    "dataset:read": "see and download data sets",
    "metric:create": "make metrics and graders",
    "metric:read": "see metrics and scores",
    "metric:log": "give feedback, preferences and outcomes",
    "interaction:create": "record interactions by hand",
    "interaction:read": "see interactions",
}

_READ = tuple(name for name in PERMISSIONS if name.endswith(":read"))
_ANNOTATE = ("project:read", "interaction:read", "metric:read", "metric:log", "model:read", "team:read")
_USE = (
    *_READ,
    "project:create",
    "project:update",
    "project:infer",
    "project:adapt",
    "dataset:create",
    "metric:create",
    "metric:log",
    "interaction:create",
)

DEFAULT_ROLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "admin": ("Admin", tuple(PERMISSIONS)),
    "platform-admin": (
        "Platform admin",
        tuple(name for name in PERMISSIONS if name.startswith(("admin:", "team:", "model:", "compute:"))),
    ),
    "power_user": ("Power user", _USE),
    "read-only": ("Read only", _READ),
    "inference": ("Inference", ("project:read", "project:infer", "metric:log", "interaction:create")),
    "annotator": ("Annotator", _ANNOTATE),
}
"""By key: the name, and what the role may do."""
