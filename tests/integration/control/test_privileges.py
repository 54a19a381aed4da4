"""Nobody gets further than they were let: keys, roles, teams and shares against people who try."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive

from tests.integration.control.conftest import ADMIN, Plane, on_both

AUDIT = "query($filter: AuditFilter, $page: CursorPageInput) { auditLog(filter: $filter, page: $page) {"
AUDIT += " totalCount pageInfo { hasNextPage endCursor } nodes { action entity details user { email } } } }"


class Somebody:
    """Calls GraphQL with a key."""

    def __init__(self, plane: Plane, api_key: str, email: str = "") -> None:
        self.plane = plane
        self.api_key = api_key
        self.email = email

    def ask(self, query: str, **variables: Any) -> Any:
        answer = self.post(query, **variables).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def refused(self, query: str, **variables: Any) -> str:
        """Why."""
        answer = self.post(query, **variables).json()
        assert answer.get("errors"), answer
        message: str = answer["errors"][0]["message"]
        assert "an error of its own" not in message
        return message

    def post(self, query: str, **variables: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.api_key}"}
        body = {"query": query, "variables": variables}
        return httpx.post(f"{self.plane.url}/api/graphql", json=body, headers=headers)

    def permissions(self, project: str) -> set[str]:
        found = self.ask("query($p: IdOrKey!) { project(idOrKey: $p) { permissions } }", p=project)["project"]
        return set() if found is None else set(found["permissions"])


SET_MEMBER = "mutation($input: TeamMemberSet!) { setTeamMember(input: $input) { role { key } } }"
REMOVE = "mutation($input: TeamMemberRemove!) { removeTeamMember(input: $input) { id } }"
SHARE = "mutation($p: IdOrKey!, $shares: [ProjectShareInput!]!)"
SHARE += " { shareProject(idOrKey: $p, input: {shares: $shares}) { shares { team { key } isOwner } } }"
ROLE = "mutation($name: String!, $permissions: [String!]!)"
ROLE += " { createRole(input: {name: $name, permissions: $permissions}) { key } }"
USER = "mutation($input: UserCreate!) { createUser(input: $input) { user { id email } generatedApiKey } }"
KEY = "mutation($user: IdOrKey!, $end: InputDatetime)"
KEY += " { createApiKey(input: {user: $user, expirationForPreviousKeys: $end}) { key createdAt } }"


@pytest.fixture
def admin(plane: Plane) -> Somebody:
    return Somebody(plane, plane.api_key, ADMIN)


def newcomer(admin: Somebody, name: str, teams: dict[str, str], *, person: bool = False) -> Somebody:
    wish: dict[str, Any] = {"name": name, "teams": [{"team": team, "role": role} for team, role in teams.items()]}
    wish |= {"email": f"{name}@example.com"} if person else {"userType": "SYSTEM"}
    made = admin.ask(USER, input={**wish, "generateApiKey": True})["createUser"]
    return Somebody(admin.plane, made["generatedApiKey"], made["user"]["email"])


def teams(admin: Somebody, *keys: str) -> None:
    for key in keys:
        admin.ask("mutation($n: String!) { createTeam(input: {name: $n}) { id } }", n=key)


# --------------------------------------------------------------------------------------------------------- keys


def test_keys_are_listed_by_their_first_letters_and_end_when_revoked(admin: Somebody) -> None:
    ann = newcomer(admin, "ann", {"default": "read-only"}, person=True)
    made = ann.ask(KEY, user=ann.email)["createApiKey"]
    second = Somebody(admin.plane, made["key"])
    listed = second.ask("{ apiKeys { id hint createdAt expiresAt revokedAt } }")["apiKeys"]
    assert [row["hint"] for row in listed] == [made["key"][:8], ann.api_key[:8]]
    assert all(row["revokedAt"] is None and row["expiresAt"] is None for row in listed)
    assert made["key"] not in str(listed)
    bob = newcomer(admin, "bob", {"default": "admin"}, person=True)
    revoke = "mutation($id: UUID!) { revokeApiKey(id: $id) { revokedAt } }"
    assert "does not exist" in bob.refused(revoke, id=listed[0]["id"])
    assert ann.ask(revoke, id=listed[0]["id"])["revokeApiKey"]["revokedAt"] is not None
    assert second.post("{ me { id } }").status_code == 401
    assert ann.ask("{ me { id } }")["me"]
    admin.ask(revoke, id=listed[1]["id"])
    assert ann.post("{ me { id } }").status_code == 401


def test_a_revoked_key_fails_on_the_next_call_through_the_sdk(
    admin: Somebody, adaptive_as: Callable[[str], Adaptive]
) -> None:
    bot = newcomer(admin, "bot", {"default": "inference"})
    client = adaptive_as(bot.api_key)
    assert client.users.me() is not None
    key = bot.ask("{ apiKeys { id } }")["apiKeys"][0]["id"]
    bot.ask("mutation($id: UUID!) { revokeApiKey(id: $id) { id } }", id=key)
    with pytest.raises(Exception, match="401"):
        client.users.me()


@on_both
def test_earlier_keys_may_go_on_for_a_while(admin: Somebody) -> None:
    bot = newcomer(admin, "bot", {"default": "inference"})
    end_s = time.time() + 4  # time for three requests
    fresh = Somebody(admin.plane, bot.ask(KEY, user=bot.email, end=int(end_s * 1000))["createApiKey"]["key"])
    assert bot.ask("{ me { id } }") == fresh.ask("{ me { id } }")
    time.sleep(max(0.0, end_s - time.time()) + 0.1)
    assert bot.post("{ me { id } }").status_code == 401
    assert fresh.ask("{ me { id } }")["me"]
    last = Somebody(admin.plane, admin.ask(KEY, user=bot.email, end="now")["createApiKey"]["key"])
    assert fresh.post("{ me { id } }").status_code == 401
    assert last.ask("{ me { email } }")["me"]["email"] == bot.email


def test_nobody_gets_the_key_of_another_person(admin: Somebody) -> None:
    ann = newcomer(admin, "ann", {"default": "admin"}, person=True)
    bot = newcomer(admin, "bot", {"default": "read-only"})
    assert "only ann@example.com" in admin.refused(KEY, user=ann.email)
    for victim in (ADMIN, bot.email):
        assert "not a member of the team 'admin'" in ann.refused(KEY, user=victim)
    assert "lacks the permission" in bot.refused(KEY, user=ann.email)


def test_a_key_is_shown_once_and_kept_as_a_digest(plane: Plane, admin: Somebody) -> None:
    bot = newcomer(admin, "bot", {"default": "read-only"})
    stored = b"".join(path.read_bytes() for path in Path(plane.config.folder).glob("harmonia.db*"))
    assert bot.email.encode() in stored
    assert bot.api_key.encode() not in stored
    assert bot.api_key not in str(admin.ask("{ users { id email name } }")) + str(admin.ask(AUDIT))


# -------------------------------------------------------------------------------------------- roles and teams


def test_roles_and_teams_are_made_in_the_team_admin_only(
    admin: Somebody, adaptive_as: Callable[[str], Adaptive]
) -> None:
    manager = newcomer(admin, "manager", {"default": "admin"})
    viewer = newcomer(admin, "viewer", {"admin": "read-only", "default": "admin"})
    for outsider in (manager, viewer):
        client = adaptive_as(outsider.api_key)
        with pytest.raises(Exception, match="only such members"):
            client.teams.create("own", "Own")
        with pytest.raises(Exception, match="only such members"):
            client.roles.create("own", ["project:read"])
        assert "only such members" in outsider.refused('mutation { updateRole(input: {role: "inference"}) { id } }')


def test_a_manager_gives_no_more_than_they_have(admin: Somebody) -> None:
    teams(admin, "support", "sales")
    admin.ask(ROLE, name="lead", permissions=["team:read", "team:manage_members", "project:read"])
    admin.ask(ROLE, name="reader", permissions=["project:read"])
    lead = newcomer(admin, "lead", {"support": "lead"})
    boss = newcomer(admin, "boss", {"support": "admin"})
    bot = newcomer(admin, "bot", {"support": "reader", "sales": "reader"})
    for role in ("admin", "platform-admin", "inference", "power_user"):
        for target in (lead, bot):
            told = lead.refused(SET_MEMBER, input={"user": target.email, "team": "support", "role": role})
            assert "that you lack yourself" in told
    for team in ("sales", "admin", "default"):
        lead.refused(SET_MEMBER, input={"user": lead.email, "team": team, "role": "reader"})
        lead.refused(REMOVE, input={"user": ADMIN, "team": team})
    assert "that you lack" in lead.refused(SET_MEMBER, input={"user": boss.email, "team": "support", "role": "reader"})
    assert "that you lack" in lead.refused(REMOVE, input={"user": boss.email, "team": "support"})
    lead.ask(SET_MEMBER, input={"user": bot.email, "team": "support", "role": "lead"})
    lead.ask(REMOVE, input={"user": bot.email, "team": "support"})
    assert "lacks the permission" in lead.refused(USER, input={"name": "n", "email": "n@example.com", "teams": []})


def test_whoever_manages_users_elsewhere_does_not_touch_admins(admin: Somebody) -> None:
    teams(admin, "support")
    manager = newcomer(admin, "manager", {"support": "admin"})
    stranger = newcomer(admin, "stranger", {"default": "read-only"})
    delete = "mutation($u: IdOrKey!) { deleteUser(user: $u) { id } }"
    for victim in (ADMIN, stranger.email):
        assert "only such members" in manager.refused(delete, u=victim)
    wish = {"name": "mole", "userType": "SYSTEM", "teams": [{"team": "admin", "role": "admin"}], "generateApiKey": True}
    assert "only such members" in manager.refused(USER, input=wish)
    assert "does not exist" in manager.refused(delete, u="mole@system.adaptive.local")
    own = newcomer(manager, "helper", {"support": "read-only"})
    manager.ask(delete, u=own.email.upper())
    assert own.post("{ me { id } }").status_code == 401


def test_an_admin_with_few_permissions_makes_no_roles_with_more(admin: Somebody) -> None:
    admin.ask(ROLE, name="clerk", permissions=["admin:manage_roles", "admin:manage_teams", "team:read"])
    clerk = newcomer(admin, "clerk", {"admin": "clerk", "default": "admin"})
    update = "mutation($r: IdOrKey!, $p: [String!]) { updateRole(input: {role: $r, permissions: $p}) { permissions } }"
    assert "that you lack" in clerk.refused(ROLE, name="all", permissions=["project:read"])
    assert "that you lack" in clerk.refused(update, r="clerk", p=["admin:manage_roles", "admin:manage_users"])
    assert "that you lack" in clerk.refused(update, r="read-only", p=[])
    assert "permits everything" in admin.refused(update, r="admin", p=[])
    assert "no permission" in admin.refused(update, r="clerk", p=["project:fly"])
    assert "that you lack" in clerk.refused(SET_MEMBER, input={"user": clerk.email, "team": "admin", "role": "admin"})
    assert admin.ask(update, r="clerk", p=["team:read"])["updateRole"]["permissions"] == ["team:read"]
    assert "only such members" in clerk.refused(ROLE, name="none", permissions=[])
    named = admin.ask('mutation { updateRole(input: {role: "clerk", name: "Clerk II"}) { key name permissions } }')
    assert named["updateRole"] == {"key": "clerk", "name": "Clerk II", "permissions": ["team:read"]}


def test_somebody_is_left_who_manages_teams(admin: Somebody) -> None:
    for attempt in (
        lambda: admin.refused(REMOVE, input={"user": ADMIN, "team": "admin"}),
        lambda: admin.refused(SET_MEMBER, input={"user": ADMIN, "team": "admin", "role": "read-only"}),
    ):
        assert "nobody left" in attempt()
    newcomer(admin, "second", {"admin": "admin"})
    admin.ask(REMOVE, input={"user": ADMIN, "team": "admin"})


# --------------------------------------------------------------------------------------------------- projects


def share(team: str, role: str, *, owner: bool = False) -> dict[str, Any]:
    return {"team": team, "role": role, "isOwner": owner}


def test_each_project_has_the_role_of_its_owning_team(admin: Somebody) -> None:
    teams(admin, "support", "sales")
    ann = newcomer(admin, "ann", {"support": "power_user", "sales": "read-only"})
    ann.ask('mutation { createProject(input: {name: "tickets", team: "support"}) { id } }')
    admin.ask('mutation { createProject(input: {name: "deals", team: "sales"}) { id } }')
    assert "project:infer" in ann.permissions("tickets")
    assert "project:read" in ann.permissions("deals")
    assert "project:infer" not in ann.permissions("deals")
    told = ann.refused('mutation { createProject(input: {name: "more", team: "sales"}) { id } }')
    assert "may not create projects" in told


@on_both
def test_only_owners_share_and_give_no_more_than_they_have(admin: Somebody) -> None:
    teams(admin, "support", "sales", "law")
    admin.ask(ROLE, name="sharer", permissions=["project:read", "project:share"])
    ann = newcomer(admin, "ann", {"support": "sharer", "law": "admin"})
    bob = newcomer(admin, "bob", {"sales": "admin", "support": "read-only"})
    admin.ask('mutation { createProject(input: {name: "tickets", team: "support"}) { id } }')
    owners = share("support", "read-only", owner=True)
    admin.ask(SHARE, p="tickets", shares=[owners, share("sales", "admin")])
    assert "project:share" in bob.permissions("tickets")
    assert "owning team" in bob.refused(SHARE, p="tickets", shares=[share("sales", "admin", owner=True)])
    for wish in (share("law", "admin"), share("law", "sharer", owner=True)):
        assert "that you lack" in ann.refused(SHARE, p="tickets", shares=[owners, share("sales", "admin"), wish])
    kept = [owners, share("sales", "admin"), share("law", "sharer")]
    assert len(ann.ask(SHARE, p="tickets", shares=kept)["shareProject"]["shares"]) == 3
    assert ann.permissions("tickets") == {"project:read", "project:share"}
    assert "named twice" in ann.refused(SHARE, p="tickets", shares=[owners, owners])
    assert "needs an owner" in ann.refused(SHARE, p="tickets", shares=[share("law", "sharer")])
    ann.ask(SHARE, p="tickets", shares=[owners, share("admin", "sharer")])
    assert "project:infer" in admin.permissions("tickets"), "a share must not take anything from admins"


# --------------------------------------------------------------------------------------------------- audit log


@on_both
def test_the_audit_log_is_for_admins_and_comes_in_pages(admin: Somebody) -> None:
    for outsider in (newcomer(admin, "ann", {"default": "admin"}), newcomer(admin, "bob", {"admin": "read-only"})):
        outsider.refused(AUDIT)
    teams(admin, *(f"team-{number}" for number in range(5)))
    seen: list[str] = []
    page: dict[str, Any] = {"first": 2}
    while True:
        found = admin.ask(AUDIT, filter={"action": "team.create"}, page=page)["auditLog"]
        assert found["totalCount"] == (6 if seen else 5)
        if not seen:
            teams(admin, "late")  # which shifts nothing
        seen += [node["entity"] for node in found["nodes"]]
        if not found["pageInfo"]["hasNextPage"]:
            break
        page["after"] = found["pageInfo"]["endCursor"]
    assert seen == [f"team/team-{number}" for number in reversed(range(5))]
    whole = admin.ask(AUDIT, filter={"entity": "user/*", "user": ADMIN, "from": "now - 1 hour", "to": "now + 1 hour"})
    assert {node["entity"] for node in whole["auditLog"]["nodes"]} == {
        "user/ann@system.adaptive.local",
        "user/bob@system.adaptive.local",
    }
    assert admin.ask(AUDIT, filter={"to": "now - 1 hour"})["auditLog"]["totalCount"] == 0
    first = admin.ask(AUDIT)["auditLog"]["nodes"][-1]
    assert (first["action"], first["user"]) == ("user.create", None), "the system made the first admin"


CHANGES: dict[str, tuple[str, str]] = {
    "createTeam": ('createTeam(input: {name: "t"}) { id }', "team.create"),
    "createRole": ('createRole(input: {name: "r", permissions: []}) { id }', "role.create"),
    "updateRole": ('updateRole(input: {role: "r", name: "R"}) { id }', "role.update"),
    "createUser": ('createUser(input: {name: "n", email: "n@example.com", teams: []}) { user { id } }', "user.create"),
    "setTeamMember": ('setTeamMember(input: {user: "n@example.com", team: "t", role: "r"}) { user { id } }', "team."),
    "removeTeamMember": ('removeTeamMember(input: {user: "n@example.com", team: "t"}) { id }', "team.remove_member"),
    "createApiKey": (f'createApiKey(input: {{user: "{ADMIN}"}}) {{ createdAt }}', "key.create"),
    "createProject": ('createProject(input: {name: "p"}) { id }', "project.create"),
    "shareProject": (
        'shareProject(idOrKey: "p", input: {shares: [{team: "default", role: "admin", isOwner: true}]}) { id }',
        "project.share",
    ),
    "deleteUser": ('deleteUser(user: "n@example.com") { id }', "user.delete"),
}


def test_changes_of_people_and_projects_leave_an_entry_each(admin: Somebody) -> None:
    for mutation, action in CHANGES.values():
        before = admin.ask(AUDIT)["auditLog"]["totalCount"]
        admin.ask(f"mutation {{ {mutation} }}")
        found = admin.ask(AUDIT)["auditLog"]
        assert found["totalCount"] == before + 1, mutation
        newest = found["nodes"][0]
        assert newest["action"].startswith(action), mutation
        assert newest["user"]["email"] == ADMIN
    before = admin.ask(AUDIT)["auditLog"]["totalCount"]
    admin.refused('mutation { createTeam(input: {name: "t"}) { id } }')
    assert admin.ask(AUDIT)["auditLog"]["totalCount"] == before, "what was refused changed nothing"
