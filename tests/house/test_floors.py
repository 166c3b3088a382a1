"""A module imports from lower floors, or from modules of its own floor that stand earlier in the sidebar."""
import ast
import sys

import pytest
from sidebar import ROOT, listed, module_of

PACKAGE = 'sae_workbench'
FLOORS = {'core': 0, 'formats': 1, 'activations': 1, 'saes': 2, 'training': 3, 'analysis': 4, 'synthetic': 5, 'migrate': 5, 'apps': 6}
ROOF = 7   # the package's root and the short modules beside it
STRANGERS = [{'saes', 'activations'}, {'formats', 'activations'}, {'synthetic', 'migrate'}]   # floors that never import each other
LIGHT = {'torch', 'numpy', 'safetensors', 'pydantic', 'tqdm', 'fastcore', PACKAGE} | sys.stdlib_module_names
ORDER = [m for m in (module_of(ROOT/name) for name in listed()) if m]
FILES = sorted(p for p in (ROOT/PACKAGE).rglob('*.py') if p.name != '_modidx.py')


def folder(module: str) -> str:
    "The floor's name, or nothing for the roof"
    return module.split('.')[0] if module.split('.')[0] in FLOORS else ''


def floor(module: str) -> int: return FLOORS.get(folder(module), ROOF)


def imports(tree: ast.AST, module: str, known, inside: bool = False):
    "Each import below a node as (absolute name, whether importing the module leaves it out: inside a function, or for type checkers alone)"
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, inside) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = [PACKAGE, *module.split('.')]
            base = '.'.join(parents[:len(parents) - node.level] + [node.module] * bool(node.module)) if node.level else node.module
            yield from ((f'{base}.{a.name}' if f'{base}.{a.name}'.removeprefix(f'{PACKAGE}.') in known else base, inside) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module') and node.args and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, inside
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        later = later or isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING' and not node.orelse
        yield from imports(node, module, known, inside or later)


def complaint(module: str, target: str, order: list[str]) -> str | None:
    "What is wrong with one import of our own, if anything"
    if {folder(module), folder(target)} in STRANGERS:
        return 'these floors never import each other'
    if floor(target) != floor(module):
        return 'goes up' if floor(target) > floor(module) else None
    if floor(module) == ROOF:
        return None
    if module not in order or target not in order:
        return 'one of them has no place in the sidebar'
    return None if order.index(target) < order.index(module) else 'stands later in the sidebar'


def complaints(module: str, source: str, order: list[str] = ORDER) -> list[str]:
    "Every import of a module that breaks a rule"
    found = []
    for name, inside in dict.fromkeys(imports(ast.parse(source), module, order)):
        if not inside and name.split('.')[0] not in LIGHT:
            found.append(f'{module} imports {name} at its top: import it where it is used')
        if name.split('.')[0] == PACKAGE and name != f'{PACKAGE}._modidx':
            target = name.removeprefix(PACKAGE).lstrip('.')
            why = complaint(module, target, order)
            if why:
                found.append(f'{module} imports {name}: {why}')
    return found


def module_name(path) -> str: return '.'.join(path.relative_to(ROOT/PACKAGE).with_suffix('').parts)


@pytest.mark.parametrize('path', FILES, ids=module_name)
def test_imports_go_down(path):
    assert not complaints(module_name(path), path.read_text(encoding='utf-8'))


def test_every_module_has_a_notebook():
    rest = {module_name(p) for p in FILES} - set(ORDER)
    assert not [m for m in rest if not m.endswith('__init__')]


BAD = {
    'import sae_workbench.training.runner': 'goes up',
    'from .. import SAE': 'goes up',
    'from sae_workbench import SAE': 'goes up',
    'from .topk import x': 'stands later',
    'from . import topk': 'stands later',
    'from sae_workbench.saes import nowhere': 'no place in the sidebar',
    'def f():\n    from ..training.runner import x': 'goes up',
    'def f(): import_module("sae_workbench.apps.cli")': 'goes up',
    'import transformers': 'at its top',
    'try: import wandb\nexcept ImportError: pass': 'at its top',
    'class A:\n    from plotly import express': 'at its top',
    'if TYPE_CHECKING:\n    pass\nelse:\n    import plotly': 'at its top',
    'if TYPE_CHECKING:\n    from ..training.runner import x': 'goes up',
}
GOOD = ['import torch, json', 'from ..core.errors import ConfigError', 'from .base import SAE', 'def f(): import wandb',
        'def f():\n    from huggingface_hub import x', 'if TYPE_CHECKING:\n    import wandb']
EXAMPLE = ['core.errors', 'formats.published', 'saes.files', 'saes.base', 'saes.gated', 'saes.topk', 'activations.tokens', 'training.runner', 'apps.cli']


@pytest.mark.parametrize('source', BAD)
def test_a_bad_import_is_found(source):
    found = complaints('saes.gated', source, EXAMPLE)
    assert len(found) == 1 and BAD[source] in found[0], found


@pytest.mark.parametrize('source', GOOD)
def test_a_good_import_passes(source):
    assert not complaints('saes.gated', source, EXAMPLE)


def test_some_floors_do_not_know_each_other():
    for module, source in (('activations.tokens', 'from ..saes.base import SAE'), ('saes.base', 'from ..activations.tokens import x'),
                           ('activations.tokens', 'from ..formats.published import x'), ('formats.published', 'from ..activations.tokens import x')):
        assert complaints(module, source, EXAMPLE)


def test_readers_know_no_sae():
    assert complaints('formats.published', 'def f():\n    from ..saes.base import SAE', EXAMPLE)
    assert not complaints('saes.files', 'from ..formats.published import read_published', EXAMPLE)
