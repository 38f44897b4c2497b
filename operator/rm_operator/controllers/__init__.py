"""One controller per kind: keys → snapshot → plan → apply → status. Decisions are in ``rm_operator.plan``."""

from functools import partial

from rm_operator.context import Context
from rm_operator.controllers.accelerator_resource import AcceleratorResourceController
from rm_operator.controllers.build_artifact import BuildArtifactController
from rm_operator.controllers.build_profile import BuildProfileController
from rm_operator.controllers.fleet import Fleet
from rm_operator.controllers.holders import Owner
from rm_operator.controllers.indexes import INDEXES
from rm_operator.controllers.model_deployment import ModelDeploymentController
from rm_operator.controllers.node import NodeController
from rm_operator.controllers.orphans import OrphanCollector
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.kube.auth import FileToken
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import BUILD_ARTIFACTS, MODEL_DEPLOYMENTS
from rm_operator.kube.serving_reports import ServingReports
from rm_operator.plan.model import Images, ImageVolumes, RemoteConfig, Retention, Settings, StoreConfig
from rm_operator.runtime.controller import Controller
from rm_operator.runtime.queue import Key

__all__ = ["INDEXES", "build"]


def build(context: Context) -> list[Controller]:
    """The controllers of our four kinds, and of Nodes."""
    config = context.config
    settings = Settings(
        images=Images(config.runtime_image, config.launcher_image, config.image_pull_policy, config.image_pull_secrets),
        store=StoreConfig(
            config.store,
            config.store_plain_http,
            ca=config.store_ca,
            token_audience=config.store_token_audience,
            image_volumes=ImageVolumes(config.image_volumes_host or config.store, config.image_volumes_pull_secret)
            if context.image_volumes
            else None,
        ),
        system_namespace=config.system_namespace,
        driver_service_account=config.driver_service_account,
        remote=RemoteConfig(
            image=config.operator_image,
            service_account=config.remote_service_account,
            tls_secret=config.remote_tls_secret,
            ca=config.remote_ca,
            ca_config_map=config.remote_ca_config_map,
        ),
        retention=Retention(config.unused_days * 86400, config.quota_mib * 1024**2 or None, config.orphan_days),
        builds_per_namespace=config.builds_per_namespace,
        builds_namespace=config.builds_namespace,
        node_cache=config.node_cache,
        hf_endpoint=config.hf_endpoint,
        native_logs=config.serving_log_format == "Native",
    )
    observe = context.tracing.observe_store if context.tracing is not None else None
    store = ArtifactStore(
        config.store,
        plain_http=config.store_plain_http,
        observe=observe,
        authority=config.store_ca,
        account=FileToken(config.store_token_file) if config.store_token_file is not None else None,
    )
    context.on_close(store.close)
    collector = OrphanCollector(context, settings, store)
    context.on_lead(collector.start)
    context.on_close(collector.stop)
    reports = Reports(context.stores, config.system_namespace)
    context.on_lead(reports.start)
    for state in reports.states():
        context.metrics.device_reports.labels(state).set_function(partial(_count, reports, state))
    context.on_close(reports.stop)
    serving_reports = ServingReports(context.stores)
    context.on_lead(serving_reports.start)
    context.on_close(serving_reports.stop)
    fleet = Fleet(context.stores, partial(_wake, context), partial(_wake_builds, context))
    return [
        AcceleratorResourceController(context, settings, reports),
        NodeController(context, reports),
        BuildProfileController(context, settings),
        BuildArtifactController(context, settings, fleet, store, serving_reports),
        ModelDeploymentController(context, settings, fleet, reports, serving_reports),
    ]


def _wake(context: Context, owner: Owner) -> None:
    context.queue.add(Key(MODEL_DEPLOYMENTS.kind, *owner))


def _wake_builds(context: Context) -> None:
    for key in context.stores[BUILD_ARTIFACTS].keys_by_index("no device", "true"):
        context.queue.add(Key(BUILD_ARTIFACTS.kind, *key))


def _count(reports: Reports, state: str) -> int:
    return reports.states()[state]
