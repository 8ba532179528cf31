"""What a name means: its definition, in the same file or in another one."""

from __future__ import annotations

import ast
from textwrap import dedent, indent

import pytest

from distillation.annotate.names import Module, Project
from distillation.annotate.sections import source_lines
from distillation.annotate.uses import uses

FILES = {
    "pkg": "from pkg.base import Base as Base\nfrom . import tools\n",
    "pkg.tools": "def helper(x):\n    return x\n\n\nLIMIT = 3\n",
    "pkg.engine": "class Engine:\n    def run(self):\n        self.steps = 0\n",
    "pkg.base": dedent("""
        from pkg.engine import Engine

        class Base:
            rate: float = 0.1
            engine: Engine

            def __init__(self, other: Engine):
                self.width = 3
                self.other = other

            def hook(self):
                return self.width
    """),
}


def meanings(source: str, name: str) -> list[str]:
    """The meanings of all uses of `name` in `source`, beside the files above."""
    source = dedent(source)
    modules = [Module(n, ast.parse(text), n == "pkg") for n, text in FILES.items()]
    mine = Module("mine", ast.parse(source))
    lines = source_lines(source)
    found = uses(Project([*modules, mine]), mine, lines)
    for use in found:
        assert lines[use.line - 1][use.start : use.end].isidentifier() or "." in use.meaning
    return [u.meaning for u in found if lines[u.line - 1][u.start : u.end] == name]


def test_an_imported_name_is_found_where_it_is_defined():
    assert (
        meanings("from pkg.tools import helper\nhelper(1)\n", "helper") == ["pkg.tools.helper"] * 2
    )


def test_a_name_that_a_package_exports_again_is_found_at_its_origin():
    assert meanings("from pkg import Base\nBase()\n", "Base") == ["pkg.base.Base"] * 2


def test_a_module_and_what_is_in_it():
    source = "import pkg.tools as t\nfrom pkg import tools\nt.helper(tools.LIMIT)\n"
    assert meanings(source, "helper") == ["pkg.tools.helper"]
    assert meanings(source, "LIMIT") == ["pkg.tools.LIMIT"]
    assert meanings(source, "t") == ["pkg.tools"] * 2


@pytest.mark.parametrize(
    ("expression", "name", "meaning"),
    [
        ("self.rate", "rate", "pkg.base.Base.rate"),
        ("self.width", "width", "pkg.base.Base.width"),
        ("super().hook()", "hook", "pkg.base.Base.hook"),
        ("self.engine.run()", "run", "pkg.engine.Engine.run"),
        ("self.other.run()", "run", "pkg.engine.Engine.run"),
        ("self.engine.steps", "steps", "pkg.engine.Engine.steps"),
    ],
)
def test_members_are_found_in_base_classes_and_through_types(expression, name, meaning):
    source = f"""
        from pkg import Base

        class Mine(Base):
            def work(self):
                return {expression}
    """
    assert meanings(source, name) == [meaning]


def test_an_override_is_its_own_definition():
    source = """
        from pkg import Base

        class Mine(Base):
            def hook(self):
                return self.hook()
    """
    assert meanings(source, "hook") == ["mine.Mine.hook"] * 2


def test_annotations_and_constructor_calls_tell_types():
    source = """
        from pkg import Base

        def f(a: Base, b: "Base | None"):
            c = Base()
            return a.hook, b.hook, c.hook
    """
    assert meanings(source, "hook") == ["pkg.base.Base.hook"] * 3


def test_same_names_in_different_functions_are_different():
    source = "def f(x):\n    return x\n\ndef g(x):\n    return [x for x in x]\n"
    found = meanings(source, "x")
    assert found[:2] == ["mine.f.<x>"] * 2
    assert "mine.f.<x>" not in found[2:]


def test_a_class_attribute_is_not_seen_from_its_methods():
    source = "x = 1\nclass C:\n    x = 2\n    y = x\n    def f(self):\n        return x\n"
    assert meanings(source, "x") == ["mine.x", "mine.C.x", "mine.C.x", "mine.x"]


def test_global_names_stay_global():
    source = "n = 0\ndef f():\n    global n\n    n = 1\n"
    assert set(meanings(source, "n")) == {"mine.n"}


def test_columns_count_characters_not_bytes():
    source = "é = 1\nprint('ünï', é)\n"
    assert meanings(source, "é") == ["mine.é"] * 2


def test_a_package_that_exports_lazily():
    modules = [
        Module("lazy", ast.parse("def __getattr__(name):\n    return load(name)\n"), True),
        Module("lazy.deep", ast.parse("class Thing:\n    size = 1\n")),
    ]
    path, module, name = Project(modules).find("lazy.Thing.size")
    assert (path, module.name, name) == ("lazy.deep.Thing.size", "lazy.deep", "Thing.size")


def test_imports_in_a_circle_end():
    modules = [
        Module("a", ast.parse("from b import x")),
        Module("b", ast.parse("from a import x")),
    ]
    assert Project(modules).find("a.x")[1] is None


def test_classes_that_are_their_own_bases_end():
    module = Module("a", ast.parse("class A(B):\n    pass\nclass B(A):\n    pass\n"))
    assert Project([module]).find("a.A.x")[1] is None


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("try:\n    f()\nexcept (OSError) as e:\n    print(e)", 2),
        ("match v:\n    case e:\n        print(e)", 2),
        ("match v:\n    case int() | str() as e:\n        print(e)", 2),
        ("match v:\n    case [a, *e]:\n        print(e)", 2),
        ('match v:\n    case {"a": 1, **e}:\n        print(e)', 2),
        ("match v:\n    case {**e}:\n        print(e)", 2),
    ],
)
@pytest.mark.parametrize("within", ["", "def f(v):\n"])
def test_a_name_is_marked_where_it_is_bound(within, source, uses):
    found = meanings(within + indent(source, "    ") if within else source, "e")
    assert len(found) == uses and len(set(found)) == 1


def test_a_global_name_is_marked_where_it_is_said_to_be_global():
    assert meanings("e = 0\ndef f():\n    global e\n    e = 1", "e") == ["mine.e"] * 3


def test_a_nonlocal_name_is_that_of_the_function_around():
    found = meanings(
        """
        def outer():
            e = 0
            def inner():
                nonlocal e
                e = 1
        """,
        "e",
    )
    assert found == ["mine.outer.<e>"] * 3


def test_a_walrus_in_a_comprehension_belongs_to_the_function():
    found = meanings(
        """
        def f(rows):
            if any((last := row) for row in rows):
                return last
        """,
        "last",
    )
    assert found == ["mine.f.<last>"] * 2
