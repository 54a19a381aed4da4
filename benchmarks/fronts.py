"""One worker behind two applications of one process: the control plane's, and that of `harmonia serve`.

Whatever differs between their answers is the control plane's doing: engine, memory, interpreter and event loop are the
same.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from benchmarks.client import HOST
from harmonia import log
from harmonia.cli.first_models import PROJECT, deploy
from harmonia.cli.up import DEFAULT_ADMIN, opened
from harmonia.config.control import ControlConfig
from harmonia.config.server import ServerConfig
from harmonia.server import Listener, bind, create_app
from harmonia.server.control import create_control_app
from harmonia.server.services.services import Services


async def run(folder: str, database: str, model: str) -> None:
    """Serve until standard input ends. Each line of it is answered with the number of interactions that were written.

    folder: empty, for what the control plane keeps. The first line of the output says where the applications are.
    """
    with bind(HOST, 0) as controlled, bind(HOST, 0) as plain:
        ports = [socket.getsockname()[1] for socket in (controlled, plain)]
        config = ControlConfig(data_dir=Path(folder), db={"url": database}).at_port(ports[0])
        async with opened(config, sys.exit) as tables:
            services = Services(config, tables)
            api_key = await services.people.bootstrap(DEFAULT_ADMIN)
            control = Listener(create_control_app(services), config, services.serving.router)
            own = Listener(create_app(ServerConfig(), services.serving.router), config, services.serving.router)
            own.config.lifespan = "off"  # the router is the control plane's
            serving = asyncio.gather(control.serve([controlled]), own.serve([plain]))
            try:
                await control.wait_listening()
                (key,) = await deploy(services, [Path(model)], lambda line: None)
                _tell({"pid": os.getpid(), "ports": ports, "api_key": api_key, "models": [f"{PROJECT}/{key}", key]})
                while await asyncio.to_thread(sys.stdin.readline):
                    await services.interaction_writer.settled()
                    _tell({"written": services.interaction_writer.written})
            finally:
                control.should_exit = own.should_exit = True
                await serving


def _tell(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    log.configure()
    uvloop.run(run(**json.loads(sys.stdin.readline())))
