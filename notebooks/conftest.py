"""Notebooks that need an extra which is not installed are skipped, with the reason."""

import importlib.util

import pytest

NEEDS = {"mads4_smax.ipynb": ("jaxmarl", "smax")}  # notebook -> (module, the extra that has it)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the notebooks of `NEEDS` whose module is not there."""
    for item in items:
        module, extra = NEEDS.get(item.path.name, (None, None))
        if module is not None and importlib.util.find_spec(module) is None:
            item.add_marker(pytest.mark.skip(reason=f"needs the extra: pip install -c constraints.txt -e '.[{extra}]'"))
