"""Which code a notebook reaches: a static walk over its imports, and a hash of what the walk finds.

The hash follows decisions, not bytes: it is taken over syntax trees without docstrings and comments, of the
notebook's code cells and of each `fedmorl` module that their imports lead to. So rewording a docstring
changes nothing, an edit to a module that the notebook never imports changes nothing, and an edit to one that
it does import changes the hash.

Imports count wherever they stand: at the top, inside a function, relative, or as a literal dotted name that
is handed to `importlib`. Two rules keep the walk sharp:

* A package's `__init__` that only re-exports (imports, `__all__`, `__version__`, a lazy `__getattr__`) is
  looked through: `from fedmorl.learners import MADS4` leads to the module that defines `MADS4`, not to every
  learner. `import fedmorl.learners` leads to all of them, since any may be used.
* Imports under `if TYPE_CHECKING:` are skipped; they never run.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

PACKAGE = "fedmorl"
PACKAGE_DIR = Path(__file__).resolve().parent

# They report on a run or start processes (those of Flower), and no number in it depends on them.
MOVES_NO_NUMBER = frozenset({"fedmorl.closure", "fedmorl.provenance", "fedmorl.rows", "fedmorl.federated.runtime"})

_INIT_BOOKKEEPING = frozenset({"__all__", "__version__"})
_LAZY_EXPORTS = frozenset({"__getattr__", "__dir__"})


class SourceError(ValueError):
    """A notebook or module cannot be read as Python; the message is one sentence for a person."""


@dataclass(frozen=True)
class Closure:
    """What a notebook reaches.

    `cells` and `modules` hold one hash each (12 hexadecimal digits), `paths` the files of the modules,
    `external` the top-level names of everything else that is imported, such as `numpy` or `torch`, and
    `literals` every string written in the reached code.
    """

    cells: str
    modules: dict[str, str]
    paths: dict[str, Path] = field(repr=False)
    external: frozenset[str]
    literals: frozenset[str] = field(repr=False)

    @property
    def code_hash(self) -> str:
        """One hash of cells and modules, 12 hexadecimal digits."""
        return short_hash(json.dumps([self.cells, self.modules], sort_keys=True))


def short_hash(content: str | bytes) -> str:
    """First 12 hexadecimal digits of the SHA-256 of `content`."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:12]


def closure(notebook: Path, package_dir: Path = PACKAGE_DIR) -> Closure:
    """Walk from the code cells of `notebook` through the package in `package_dir`."""
    cells = [parse_cell(source, notebook) for source in code_cells(notebook)]
    walk = _Walk(package_dir)
    for tree in cells:
        walk.follow(tree)
    return Closure(
        cells=short_hash("\n".join(ast.dump(tree) for tree in cells)),
        modules={name: walk.reached[name].hash for name in sorted(walk.reached)},
        paths={name: walk.file(name) for name in sorted(walk.reached)},
        external=frozenset(walk.external),
        literals=frozenset(walk.literals),
    )


def module_hash(name: str, package_dir: Path = PACKAGE_DIR) -> str:
    """Hash of one module by its dotted name, docstrings and comments left out."""
    walk = _Walk(package_dir)
    return walk.parse(name).hash


def code_cells(notebook: Path) -> list[str]:
    """Sources of the notebook's code cells, in order."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{notebook} is not a notebook: {error}") from None
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def parse_cell(source: str, notebook: Path) -> ast.Module:
    """Syntax tree of one cell; IPython's magics are translated only where plain Python fails."""
    try:
        return strip_docstrings(ast.parse(source), module=False)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        try:
            return strip_docstrings(ast.parse(TransformerManager().transform_cell(source)), module=False)
        except SyntaxError as error:
            first = source.strip().splitlines()[0]
            raise SourceError(f"{notebook}: the cell that starts {first!r} is not Python: {error.msg}") from None


def strip_docstrings(tree: ast.Module, module: bool = True) -> ast.Module:
    """Remove docstrings in place; a cell's leading string stays (`module=False`), as it may be its output."""
    owners = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in ast.walk(tree):
        if isinstance(node, owners) or (module and node is tree):
            if node.body and _is_string(node.body[0]):
                del node.body[0]
    return tree


@dataclass(frozen=True)
class _Parsed:
    """A module's syntax tree without docstrings, its hash, its literals."""

    tree: ast.Module
    hash: str
    literals: frozenset[str]


@lru_cache(maxsize=1024)
def _parsed(path: Path, size: int, mtime_ns: int) -> _Parsed:
    """Parse a module; what was found is kept as long as size and time of the file stay the same."""
    tree = strip_docstrings(ast.parse(path.read_text(encoding="utf-8")))
    return _Parsed(tree, short_hash(ast.dump(tree)), frozenset(_literals(tree)))


@lru_cache(maxsize=1024)
def _references_of(parsed: _Parsed, package: str) -> tuple[tuple[str, str | None], ...]:
    return tuple(_references(parsed.tree, package))


class _Walk:
    """The modules reached so far, each parsed once."""

    def __init__(self, package_dir: Path) -> None:
        self.package_dir = package_dir
        self.reached: dict[str, _Parsed] = {}
        self.external: set[str] = set()
        self.literals: set[str] = set()
        self._looked_through: set[tuple[str, str]] = set()

    def find(self, name: str) -> Path | None:
        """File of a dotted module name, or None if the package has no such module."""
        head, *rest = name.split(".")
        if head != PACKAGE or not all(part.isidentifier() for part in rest):
            return None
        path = self.package_dir.joinpath(*rest)
        candidates = (path / "__init__.py", path.with_suffix(".py") if rest else path / "__init__.py")
        return next((file for file in candidates if file.is_file()), None)

    def file(self, name: str) -> Path:
        """File of a dotted module name that must exist."""
        path = self.find(name)
        if path is None:
            raise SourceError(f"there is no module {name} in {self.package_dir.name}")
        return path

    def parse(self, name: str) -> "_Parsed":
        path = self.file(name)
        stat = path.stat()
        try:
            return _parsed(path, stat.st_size, stat.st_mtime_ns)
        except SyntaxError as error:
            raise SourceError(f"module {name} is not Python: line {error.lineno}: {error.msg}") from None

    def follow(self, cell: ast.Module) -> None:
        """Reach whatever a notebook's cell refers to."""
        self.literals.update(_literals(cell))
        for target, name in _references(cell, package=""):
            self.reach(target, name)

    def reach(self, target: str, name: str | None) -> None:
        """Reach `name` in module `target`, or all of it if `name` is None or `*`."""
        if target.split(".")[0] != PACKAGE:
            self.external.add(target.split(".")[0])
        elif name and self.find(f"{target}.{name}"):
            self.add(f"{target}.{name}")
        elif self.find(target) is None:
            return  # the run itself will say ImportError, and better
        elif name and name != "*" and self._is_init(target) and _only_reexports(self.parse(target).tree):
            self._look_through(target, name)
        else:
            self.add(target)

    def add(self, module: str) -> None:
        """Reach all of a module, and those parents' `__init__` that do more than re-export."""
        parents = module.split(".")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = ".".join(parents[:depth])
            if self.find(parent) and not _only_reexports(self.parse(parent).tree):
                self._add_one(parent)
        self._add_one(module)

    def _add_one(self, module: str) -> None:
        if module in self.reached or module in MOVES_NO_NUMBER:
            return
        parsed = self.reached[module] = self.parse(module)
        self.literals.update(parsed.literals)
        for target, name in _references_of(parsed, self._package_of(module)):
            self.reach(target, name)

    def _look_through(self, init: str, name: str) -> None:
        if (init, name) in self._looked_through:
            return
        self._looked_through.add((init, name))
        exports = dict(_exports(self.parse(init).tree, init))
        if name in exports:
            self.reach(*exports[name])
        else:
            self.add(init)

    def _is_init(self, module: str) -> bool:
        path = self.find(module)
        return path is not None and path.name == "__init__.py"

    def _package_of(self, module: str) -> str:
        return module if not module or self._is_init(module) else module.rpartition(".")[0]


def _references(tree: ast.AST, package: str) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) for each import, and for each literal that is a module's dotted name."""
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((_absolute(node, package), alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(f"{PACKAGE}."):
                yield node.value, None
            elif node.value.startswith(".") and package and node.value[1:].isidentifier():
                yield package + node.value, None


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _never_runs(node):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Absolute dotted name of the module that `from … import` names."""
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _exports(init: ast.Module, package: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(exported name, (module, name there)) of each `from … import` in an `__init__`.

    Those under `if TYPE_CHECKING:` count here: they say where a lazy `__getattr__` finds a name.
    """
    for node in ast.walk(init):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, (_absolute(node, package), alias.name)


def _only_reexports(init: ast.Module) -> bool:
    return all(_is_reexport(statement) for statement in init.body)


def _is_reexport(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef):
        return statement.name in _LAZY_EXPORTS
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return all(isinstance(target, ast.Name) and target.id in _INIT_BOOKKEEPING for target in targets)
    if isinstance(statement, ast.If):
        return _never_runs(statement) and not statement.orelse
    return isinstance(statement, ast.Import | ast.ImportFrom) or _is_string(statement)


def _never_runs(node: ast.If) -> bool:
    """Whether `node` is an `if TYPE_CHECKING:`."""
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
