"""Ray Serve: the server's protocol over HTTP, replicas and autoscaling by Ray's own means.

serve.run(ray_serve.deployment({"detector": "detector.onnx"}))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError
from ..predictor import load
from .shared_model import Model, SharedModel, local_path

__all__ = ["SharedModel", "deployment"]


def deployment(
    models: Mapping[str, Model],
    *,
    num_gpus: float = 1,
    batching: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    load_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """An application for ``serve.run`` that serves these models as ``trtrun serve`` does, without gRPC.

    A replica is ready when each of its models has run once.

    Args:
        models: by name; paths that exist on every node, or shared ones.
        num_gpus: of each replica; 0 where the models run on the CPU.
        batching: the fields of :class:`~trtrun.serve.batcher.BatchOptions`.
        limits: the fields of :class:`~trtrun.serve.http_api.HttpOptions`.
        load_options: of :func:`trtrun.load`.
        options: of Ray's ``Deployment.options``: ``num_replicas``, ``autoscaling_config``, ``max_ongoing_requests``, …

    Raises MissingPackageError without Ray Serve.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise MissingPackageError(f"Ray Serve cannot be imported ({error}). Run: pip install 'trtrun[ray]'") from error

    models = dict(models)

    def build() -> Any:
        """In the replica: its models, loaded and warm, and the application over them."""
        from ..serve.batcher import BatchOptions
        from ..serve.http_api import HttpOptions, application
        from ..serve.repository import Repository

        repository = Repository(
            lambda path: load(path, **(load_options or {})),
            {name: Path(local_path(model)) for name, model in models.items()},
            options=BatchOptions(**(batching or {})),
        )
        errors = repository.load_all()
        if errors:
            repository.close()
            raise errors[0]
        return application(repository, HttpOptions(**(limits or {})))

    resources = {"num_gpus": num_gpus, **options.pop("ray_actor_options", {})}
    # More requests than run at once must reach a replica, or there is nothing to batch.
    defaults = {"name": "trtrun", "max_ongoing_requests": 256, "ray_actor_options": resources}
    return serve.deployment(serve.ingress(build)()).options(**{**defaults, **options}).bind()
