"""Settings of the control plane, read from `ADAPTIVE_*` variables with `__` between levels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from harmonia.config.server import HttpServer, ServerConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Db(_Section):
    """Where everything is kept."""

    url: str | None = None
    """`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`. None: a file in the data folder, or, with `host`, the
    address made of the parts below."""
    username: str | None = None
    """Of a PostgreSQL server at `host`."""
    password: SecretStr | None = None
    """Its password."""
    host: str | None = None
    """Where that server is."""
    port: int = 5432
    """Where it listens."""
    database: str = "adaptive"
    """The name of the database there."""
    run_migrations: bool = True
    """Bring the tables up to date at the start."""


class App(_Section):
    """The application itself."""

    secret: SecretStr | None = Field(default=None, min_length=64)
    """Signs the cookies of the log-in; None: made at the first start, kept in the data folder."""


class OidcProvider(_Section):
    """An OpenID provider that people log in with."""

    key: str = Field(pattern=r"^[a-z0-9_-]+$")
    """Its part of addresses."""
    name: str
    """What people see."""
    issuer_url: str
    """Where `/.well-known/openid-configuration` is."""
    client_id: str
    """Who this server is there."""
    client_secret: SecretStr | None = None
    """What proves it; None: a public client."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    """What is asked for; without e-mail nobody is known."""
    pkce: bool = True
    """Proof that the answer goes to who asked (RFC 7636)."""
    allow_sign_up: bool = False
    """Let somebody in who has no account yet, and make one."""
    allowed_domains: tuple[str, ...] = ()
    """Of e-mail addresses; none: every domain."""
    require_email_verified: bool = True
    """Let nobody in whose address the provider has not verified."""

    @field_validator("scopes")
    @classmethod
    def _asks_for_identity(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if not {"openid", "email"} <= set(scopes):
            raise ValueError("scopes must hold 'openid' and 'email', by which people are known")
        return scopes


class Oidc(_Section):
    """Logging in through other people's accounts."""

    providers: tuple[OidcProvider, ...] = ()
    """As a JSON list."""

    @field_validator("providers")
    @classmethod
    def _keys_differ(cls, providers: tuple[OidcProvider, ...]) -> tuple[OidcProvider, ...]:
        keys = [provider.key for provider in providers]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two providers have the same key: {', '.join(keys)}")
        return providers


class Session(_Section):
    """Cookies of the log-in."""

    secure: bool = True
    """Only over HTTPS."""
    expiration_seconds: int = Field(default=518_400, gt=0)
    """How long a log-in lasts: six days."""


class Auth(_Section):
    """Who gets in, and as what."""

    oidc: Oidc = Oidc()
    """`ADAPTIVE_AUTH__OIDC__*`."""
    session: Session = Session()
    """`ADAPTIVE_AUTH__SESSION__*`."""
    default_team: str = "default"
    """The team of somebody who signs up."""
    default_role: str = "read-only"
    """What somebody who signs up becomes in the default team. Least by default: sign-up is open to a whole company."""
    admins: tuple[str, ...] = ()
    """E-mail addresses that become members of the team `admin` when they log in."""


class ControlServer(HttpServer):
    """The listening side of the control plane."""

    model_config = ConfigDict(extra="forbid")

    root_url: str | None = None
    """Where people reach it, for redirects of the log-in; None: the address it listens on."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, gt=0)
    """Largest request body; a larger one gets 413."""
    max_upload_bytes: int = Field(default=128 * 1024 * 1024, gt=0)
    """The same for forms with files and for parts of uploads, of which the SDK sends up to 100 MiB."""
    internal_port: int | None = Field(default=None, ge=0, le=65535)
    """A second port for `/health` and `/metrics` alone, usually 9009; None: they are on the main port only."""
    requests_per_second: float | None = Field(default=None, gt=0)
    """What one API key may ask for on average, with bursts of twice as many at once; beyond it is 429. None: no limit.
    Each process counts for itself."""


class Files(_Section):
    """Where files go."""

    url: str | None = None
    """`s3://`, `gs://` or `az://` for object storage, `file:///PATH` for a folder; None: one in the data folder."""
    upload_expiry_hours: float = Field(default=24.0, gt=0)
    """An upload in parts is dropped when no part has come for so long."""
    max_unfinished_bytes: int = Field(default=64 * 1024**3, gt=0)
    """What one account may have in uploads that are not finished; a part beyond it is refused."""
    max_unfinished_uploads: int = Field(default=256, gt=0)
    """How many such uploads one account may have."""


class Graders(_Section):
    """Graders that run here, and those at other people's."""

    seconds: float = Field(default=5.0, gt=0)
    """How long a function may take for one conversation."""
    memory_bytes: int = Field(default=512 * 1024 * 1024, ge=128 * 1024 * 1024)
    """Address space of the process that a function runs in."""
    processes: int = Field(default=4, gt=0)
    """Functions that run at the same time."""
    remote_seconds: float = Field(default=30.0, gt=0)
    """How long a server outside may take for one batch."""
    remote_batch: int = Field(default=32, gt=0)
    """Conversations that a server outside gets in one request."""
    allow_private: bool = False
    """Let graders be at private, loopback and link-local addresses: whoever makes a grader then reaches this
    network."""


class ExternalModels(_Section):
    """Models that somebody else computes."""

    allow_private: bool = False
    """Let their endpoints be at private, loopback and link-local addresses, as servers of this network are: whoever
    registers a model then reaches it."""


class Notifications(_Section):
    """Telling the outside what happens."""

    seconds: float = Field(default=10.0, gt=0)
    """How long one delivery may take."""
    attempts: int = Field(default=8, gt=0)
    """Deliveries that are tried before a message is given up; the wait between them doubles from a second on."""
    allow_private: bool = False
    """Let webhooks and mail servers be at private, loopback and link-local addresses: whoever sets them up then reaches
    this network."""


class Hub(_Section):
    """Where models are imported from."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Address of Hugging Face's hub or of a mirror of it; None: `HF_ENDPOINT`, else https://huggingface.co."""
    imports: int = Field(default=2, gt=0)
    """Models that are brought at the same time; further ones wait."""
    spare_disk_bytes: int = Field(default=2 * 1024**3, ge=0)
    """What must stay free on the disk of the model registry; an import that would not leave it is refused."""

    @property
    def address(self) -> str:
        """Where the hub is."""
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class PoolSettings(_Section):
    """Devices of this machine that belong together."""

    key: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)
    """How people name it."""
    name: str | None = None
    """What people see; None: the key."""
    devices: tuple[str, ...] = Field(min_length=1)
    """GPUs by number, as `nvidia-smi` counts them or as places in `CUDA_VISIBLE_DEVICES` if that is set; or `cpu`, or
    some of its cores, `cpu:0-3`. Each is one device, and belongs to one pool at most."""
    capabilities: tuple[Literal["INFERENCE", "JOB"], ...] = Field(default=("INFERENCE", "JOB"), min_length=1)
    """What may run there."""

    @field_validator("devices", mode="before")
    @classmethod
    def _numbers_are_names(cls, devices: object) -> object:
        if not isinstance(devices, list | tuple):
            return devices
        return [str(device) if type(device) is int else device for device in devices]


class Compute(_Section):
    """The devices of this machine."""

    pools: tuple[PoolSettings, ...] = ()
    """As a JSON list, the default pool first; none: one pool `default` of all GPUs, or of the CPU without any."""

    @field_validator("pools")
    @classmethod
    def _are_apart(cls, pools: tuple[PoolSettings, ...]) -> tuple[PoolSettings, ...]:
        keys = [pool.key for pool in pools]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two pools have the same key: {', '.join(keys)}")
        return pools


class Jobs(_Section):
    """Runs of recipes."""

    max_restarts: int = Field(default=3, ge=0)
    """How often a job goes on after a server that died while it ran; then it has failed."""
    stop_seconds: float = Field(default=20.0, ge=0)
    """How long running jobs may take to write a checkpoint when the server is told to stop."""
    max_log_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Of a job's output; what comes after is dropped."""


class ControlConfig(ServerConfig):
    """Everything the control plane needs."""

    server: ControlServer = ControlServer()
    """`ADAPTIVE_SERVER__*`."""
    db: Db = Db()
    """`ADAPTIVE_DB__*`."""
    app: App = App()
    """`ADAPTIVE_APP__*`."""
    auth: Auth = Auth()
    """`ADAPTIVE_AUTH__*`."""
    files: Files = Files()
    """`ADAPTIVE_FILES__*`."""
    external_models: ExternalModels = ExternalModels()
    """`ADAPTIVE_EXTERNAL_MODELS__*`."""
    graders: Graders = Graders()
    """`ADAPTIVE_GRADERS__*`."""
    notifications: Notifications = Notifications()
    """`ADAPTIVE_NOTIFICATIONS__*`."""
    compute: Compute = Compute()
    """`ADAPTIVE_COMPUTE__*`."""
    hub: Hub = Hub()
    """`ADAPTIVE_HUB__*`."""
    jobs: Jobs = Jobs()
    """`ADAPTIVE_JOBS__*`."""
    data_dir: Path = Path("~/.harmonia")
    """`ADAPTIVE_DATA_DIR`: database, files, models and secrets that were not put elsewhere."""
    model_registry: str | None = None
    """`ADAPTIVE_MODEL_REGISTRY`: a folder of models; None: `models` in the data folder."""

    @property
    def folder(self) -> Path:
        """The data folder as an absolute path."""
        return self.data_dir.expanduser().resolve()

    @property
    def database_address(self) -> str:
        """The address of the database."""
        db = self.db
        if db.url is not None:
            return db.url
        if db.host is not None:
            password = "" if db.password is None else f":{db.password.get_secret_value()}"
            user = f"{db.username}{password}@" if db.username else ""
            return f"postgresql://{user}{db.host}:{db.port}/{db.database}"
        return f"sqlite:///{self.folder / 'harmonia.db'}"

    @property
    def registry(self) -> Path:
        """The folder of models."""
        return Path(self.model_registry).expanduser().resolve() if self.model_registry else self.folder / "models"
