"""`glmserve deploy`: a file that keeps a server running.  What is in it is in glmserve.tools.deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glmserve.cli.options import with_flags_of
from glmserve.config import EngineConfig, ServerConfig
from glmserve.tools.deploy.settings import DeployConfig, check_flags_belong, load_deploy_settings, target_named


@with_flags_of(DeployConfig, EngineConfig, ServerConfig, without=("model", "api_key"))
def deploy(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="supervisor, systemd, docker, compose or kubernetes.", show_default=False)
    ],
    model: Annotated[str | None, typer.Argument(help="Model folder, or [bold]demo[/bold], the default.", show_default=False)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings of `serve`; they become flags.", show_default=False)] = None,
    **flags: Any,
) -> None:
    """Write a commented file that keeps a server running on this machine, and say how to put it to work. Nothing else is changed.

    [bold]Examples[/bold]

    glmserve deploy systemd /models/chatglm-6b

    glmserve deploy supervisor /models/chatglm-6b --replace /etc/supervisor/conf.d/chatglm.conf
    [dim]in the place of an old demo: same program name, same port, with the way back[/dim]

    glmserve deploy docker                                    [dim]the image; the model is mounted[/dim]

    glmserve deploy compose /models/chatglm-6b --port 9000

    glmserve deploy kubernetes /models/chatglm-6b --replicas 2 --output -

    Options of `glmserve serve` are taken too and stand in the file; those not given keep their defaults.
    """
    settings = load_deploy_settings({name: value for name, value in flags.items() if name in DeployConfig.model_fields})
    served = {name: value for name, value in flags.items() if name not in DeployConfig.model_fields}
    where = target_named(target)
    check_flags_belong(where, settings)
    from glmserve.tools.deploy.write import deploy as write  # here, since jinja2 and NVML would slow down every other command

    write(where, model, served, config, settings)
