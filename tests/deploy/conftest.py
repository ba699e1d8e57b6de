"""The first test with a tool may have to wait until it is built."""

from __future__ import annotations

import pytest

from tests.deploy import tools


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("deploy") is not None:
            item.add_marker(pytest.mark.timeout(tools.BUILD_S + 300))


@pytest.fixture(scope="session")
def helm() -> None:
    """Helm is there; :mod:`tests.deploy.render` uses it."""
    tools.required(tools.helm)


@pytest.fixture(scope="session")
def schemas() -> None:
    """The modules that carry schemas are there; :mod:`tests.deploy.schemas` uses them."""
    for name in (tools.KUBERNETES, tools.KUBERAY, tools.PROMETHEUS_OPERATOR):
        tools.required(tools.module, *name)
