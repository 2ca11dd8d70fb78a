"""The version of a stage's code, which follows from the sources that its work runs through.

From the functions where a stage begins, names are followed through the package: a definition counts
with everything that it mentions. Comments, docstrings and layout do not count. Where names do not
say what is used (a module that is passed on, or named in a text because another process runs it, or
one that looks for files beside it), the whole module counts, with those files.

What a stage would run without mentioning it would be missed: a test traces the stages and holds
what ran against what counts.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_ROOT = __name__.partition(".")[0]
_PACKAGE = Path(__file__).parent
# They carry results, refusals and what is asked, whose values stand in the key; a change of a text
# in them changes no result.
CARRIERS = tuple(
    f"{_ROOT}.{name}" for name in ("store", "folders", "errors", "recipe", "code_version")
)
_WHOLE = "*"


@dataclass(frozen=True)
class _Module:
    """The sources of a module by what they define.

    Args:
        path: Its file.
        imports: What its import statements bind, as dotted names.
        statements: Its other statements, without docstrings.
        defining: Which of them bind a name.
        loose: Those that bind none; they run with any of the others.
    """

    path: Path
    imports: dict[str, str]
    statements: list[ast.stmt] = field(default_factory=list)
    defining: dict[str, list[int]] = field(default_factory=dict)
    loose: list[int] = field(default_factory=list)

    def indices(self, names: Iterable[str]) -> list[int]:
        """Returns which statements count if some names do."""
        if _WHOLE in names:
            return list(range(len(self.statements)))
        return sorted({*self.loose, *(i for n in names for i in self.defining.get(n, ()))})


class _Package:
    """The modules of a package, each read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._paths = {}
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            parts = (_ROOT, *(inside[:-1] if inside[-1] == "__init__" else inside))
            self._paths[".".join(parts)] = path
        self._read: dict[str, _Module] = {}
        self._mentions: dict[tuple[str, int], set[tuple[str, str]]] = {}

    def __getitem__(self, module: str) -> _Module:
        if module not in self._read:
            self._read[module] = self._sources(module)
        return self._read[module]

    def inside(self, module: str) -> list[str]:
        """Returns the modules below one."""
        return [name for name in self._paths if name.startswith(f"{module}.")]

    def place(self, dotted: str) -> tuple[str, str]:
        """Returns module and name of something in the package, the name "*" for a module.

        Raises:
            LookupError: If the package has no such module.
        """
        parts = dotted.split(".")
        for count in range(len(parts), 0, -1):
            module = ".".join(parts[:count])
            if module in self._paths:
                return module, parts[count] if count < len(parts) else _WHOLE
        raise LookupError(dotted)

    def mentioned(self, module: str, index: int) -> set[tuple[str, str]]:
        """Returns what a statement of a module mentions of the package."""
        if (module, index) not in self._mentions:
            statement = self[module].statements[index]
            imports = {**self[module].imports, **dict(self._imported(statement, module))}
            self._mentions[module, index] = set(self._followed(statement, module, imports))
        return self._mentions[module, index]

    def _sources(self, module: str) -> _Module:
        path = self._paths[module]
        sources = _Module(path, {})
        for statement in _undocumented(ast.parse(path.read_bytes())).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                sources.imports.update(self._imported(statement, module))
                continue
            names = set(_bound(statement))
            for name in names:
                sources.defining.setdefault(name, []).append(len(sources.statements))
            if not names:
                sources.loose.append(len(sources.statements))
            sources.statements.append(statement)
        return sources

    def _imported(self, node: ast.AST, module: str) -> Iterator[tuple[str, str]]:
        """Yields the names that imports in a piece of source bind, and what to."""
        is_package = self._paths[module].name == "__init__.py"
        base = (module if is_package else module.rpartition(".")[0]).split(".")
        for inner in ast.walk(node):
            match inner:
                case ast.Import(names=names):
                    for name in names:
                        top = name.name.partition(".")[0]
                        yield (name.asname, name.name) if name.asname else (top, top)
                case ast.ImportFrom(module=source, names=names, level=level):
                    above = base[: len(base) - level + 1] if level else []
                    full = ".".join([*above, *([source] if source else [])])
                    yield from ((n.asname or n.name, f"{full}.{n.name}") for n in names)

    def _followed(
        self, statement: ast.stmt, module: str, imports: dict[str, str]
    ) -> Iterator[tuple[str, str]]:
        inner = set()  # of attributes, which are followed from the outermost one
        for node in ast.walk(statement):
            if node in inner:
                continue
            match node:
                case ast.Attribute() | ast.Name():
                    parts: list[str] = []
                    base: ast.expr = node
                    while isinstance(base, ast.Attribute):
                        parts.insert(0, base.attr)
                        base = base.value
                        inner.add(base)
                    if isinstance(base, ast.Name):
                        yield from self._named(base.id, parts, module, imports)
                case ast.Constant(value=str(text)) if text.startswith(f"{_ROOT}."):
                    if text.rstrip(".") in self._paths:
                        yield text.rstrip("."), _WHOLE

    def _named(
        self, name: str, parts: list[str], module: str, imports: dict[str, str]
    ) -> Iterator[tuple[str, str]]:
        if name == "__file__":  # it looks for files beside it
            is_package = self._paths[module].name == "__init__.py"
            yield (module if is_package else module.rpartition(".")[0]), _WHOLE
        if name in self[module].defining:
            yield module, name
        dotted = imports.get(name, "")
        if dotted.partition(".")[0] == _ROOT:
            yield self.place(".".join([dotted, *parts]))
        elif dotted and name in self[module].imports:
            yield module, name


def _undocumented(tree: ast.Module) -> ast.Module:
    """Takes the docstrings out of the sources."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return tree


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((n.asname or n.name).partition(".")[0] for n in names)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


@cache
def _package(folder: Path) -> _Package:
    return _Package(folder)


@cache
def code_version(*entries: str, package: Path = _PACKAGE) -> str:
    """Returns the sha256, in hexadecimal, of the sources that some functions run through.

    Args:
        entries: Functions and constants, as "edgekit.module.name".
        package: Folder of the package. Defaults to the one that is running.

    Raises:
        LookupError: If there is no such function.
    """
    known = _package(package)
    sha = hashlib.sha256()
    for module, names in sorted(reached(*entries, package=package).items()):
        sources = known[module]
        used = sources.imports if _WHOLE in names else sources.imports.keys() & names
        for name in sorted(used):
            sha.update(f"{module} {name} {sources.imports[name]}\n".encode())
        for index in sources.indices(names):
            sha.update(f"{module} {ast.dump(sources.statements[index])}\n".encode())
        for path in _beside(sources.path, whole=_WHOLE in names):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            sha.update(f"{module} {path.name} {content}\n".encode())
    return sha.hexdigest()


def reached(*entries: str, package: Path = _PACKAGE) -> dict[str, set[str]]:
    """Returns the names that count, by module; "*" stands for all of it.

    Args:
        entries: As in `code_version`.
        package: As in `code_version`.

    Raises:
        LookupError: If there is no such function.
    """
    known = _package(package)
    found: dict[str, set[str]] = {}
    waiting = [known.place(entry) for entry in entries]
    for entry, (module, name) in zip(entries, waiting, strict=True):
        if name not in known[module].defining:
            raise LookupError(entry)
    while waiting:
        module, asked = waiting.pop()
        sources = known[module]
        # What is neither defined nor imported is such as __file__.
        name = asked if asked in sources.defining or asked in sources.imports else _WHOLE
        if module in CARRIERS or name in found.setdefault(module, set()):
            continue
        found[module].add(name)
        if name == _WHOLE:
            waiting += [(inner, _WHOLE) for inner in known.inside(module)]
        dotted = sources.imports.get(name, "")
        if dotted.partition(".")[0] == _ROOT:
            waiting.append(known.place(dotted))
        for index in sources.indices({name}):
            waiting += known.mentioned(module, index)
    return found


def _beside(path: Path, *, whole: bool) -> list[Path]:
    """Returns the files beside a package's module that are not Python; below it, if all counts."""
    if path.name != "__init__.py":
        return []
    found = path.parent.rglob("*") if whole else path.parent.glob("*")
    return sorted(
        file
        for file in found
        if file.is_file() and file.suffix not in (".py", ".pyc") and file.name != "py.typed"
    )
