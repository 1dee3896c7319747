"""Makes boto3 clients cheap for tests: what depends on the service alone is computed once in each process."""

import functools
from collections.abc import Mapping
from typing import Any

import botocore.loaders
import botocore.regions
import botocore.session
import pytest
from botocore.client import ClientCreator
from botocore.endpoint_provider import EndpointProvider
from botocore.hooks import BaseEventHooks, EventAliaser


def share_models(patch: pytest.MonkeyPatch) -> None:
    """Share what botocore computes again for each session and client: together three quarters of the CPU time.

    Shared are S3's model, its client class, the rules of endpoints, and the names of events. Whether the handlers
    are valid is not checked. Each client keeps its own settings, credentials, handlers and connections.
    """
    patch.setattr(botocore.session, "create_loader", functools.cache(botocore.loaders.create_loader))
    names = EventAliaser(None)._alias_event_name
    patch.setattr(EventAliaser, "_alias_event_name", staticmethod(names))
    patch.setattr(BaseEventHooks, "_verify_accept_kwargs", lambda *_: True)
    patch.setattr(
        ClientCreator, "_load_service_model", _once_for_each_service(ClientCreator._load_service_model)
    )
    patch.setattr(
        ClientCreator, "_create_client_class", _once_for_each_service(ClientCreator._create_client_class)
    )
    patch.setattr(botocore.regions, "EndpointProvider", _shared_providers())


def _once_for_each_service(method: Any) -> Any:
    """Let a method of a client creator return the same result for the same service."""
    results: dict[str, Any] = {}

    def cached(creator: ClientCreator, service_name: str, *arguments: Any) -> Any:
        if service_name not in results:
            results[service_name] = method(creator, service_name, *arguments)
        return results[service_name]

    return cached


def _shared_providers() -> Any:
    """Make one provider for each set of rules; the shared loader returns the same object each time."""
    providers: dict[int, EndpointProvider] = {}

    def provider(
        ruleset_data: Mapping[str, Any], partition_data: Mapping[str, Any], excluded_params: Any = None
    ) -> EndpointProvider:
        if id(ruleset_data) not in providers:
            providers[id(ruleset_data)] = EndpointProvider(ruleset_data, partition_data, excluded_params)
        return providers[id(ruleset_data)]

    return provider
