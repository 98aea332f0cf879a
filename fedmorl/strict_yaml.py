"""YAML that a person wrote: plain values only, no key twice, one sentence for what is wrong."""

from pathlib import Path
from typing import Any

import yaml

from fedmorl.notebook import RunError


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses tags such as `!!python/object`; here a repeated key is refused too."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for name, _ in node.value:
        if name.value in seen and name.tag != "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(None, None, f"the key {name.value!r} stands twice", name.start_mark)
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> Any:
    """A YAML file's value, or RunError in one sentence."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except FileNotFoundError:
        raise RunError(f"there is no {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        why = str(error.problem).replace("could not determine a constructor for the tag", "this tag is not allowed:")
        raise RunError(f"{path}{line}: {why}") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
