"""No tuple of a fixed length is told from another by identity, by what mypy knows of the sources: `make lint`.

Compiled, such a tuple is no object: whoever looks at it has one made of it, each time another.
"""

from __future__ import annotations

from pathlib import Path

from mypy.build import BuildSource, build
from mypy.nodes import ComparisonExpr
from mypy.options import Options
from mypy.types import TupleType, Type, UnionType, get_proper_type

import raftsvc

PACKAGE = Path(raftsvc.__file__).resolve().parent


def main() -> None:
    options = Options()
    options.python_version = (3, 10)
    options.incremental, options.export_types, options.ignore_missing_imports = False, True, True
    names = [(path, path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    sources = [BuildSource(str(path), ".".join(parts).removesuffix(".__init__")) for path, parts in names]
    types = build(sources, options).types
    compared = [node for node in types if isinstance(node, ComparisonExpr) and {"is", "is not"} & {*node.operators}]
    if not compared:
        raise SystemExit("nothing is compared by identity, which is not so")
    wrong = [node for node in compared if all(_has_fixed(types.get(one)) for one in node.operands)]
    if wrong:
        raise SystemExit("\n".join(f"told by identity, line {node.line}: {node}" for node in wrong))


def _has_fixed(kind: Type | None) -> bool:
    """Whether it may be a tuple of a fixed length, and none that has names."""
    kind = get_proper_type(kind)
    if isinstance(kind, UnionType):
        return any(_has_fixed(item) for item in kind.items)
    return isinstance(kind, TupleType) and kind.partial_fallback.type.fullname == "builtins.tuple"


if __name__ == "__main__":
    main()
