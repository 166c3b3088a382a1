"""Write what editors and type checkers read of the packages whose names are imported when they are asked for.

    python tools/stubs.py

`from sae_workbench import SAE` works through a module's `__getattr__`, of which a type checker knows nothing. The `__init__.pyi` beside
each such `__init__.py` says the same in words that it understands.
"""
import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = dict(sae_workbench='api', **{'sae_workbench.synthetic': 'synthetic/names'})   # each with its notebook


def imports(module: str, names: list[str]) -> list[str]:
    "An import that passes the names on: a stub does that only with `as`"
    if len(names) == 1:
        return [f'from .{module} import {names[0]} as {names[0]}']
    return [f'from .{module} import (', *(f'    {name} as {name},' for name in names), ')']


def make(package: str) -> str:
    "The text of a package's stub"
    root = importlib.import_module(package)
    modules = {}
    for name, module in root.MODULE_OF.items():
        modules.setdefault(module, []).append(name)
    version = ['', '__version__: str'] if hasattr(root, '__version__') else []
    names = [f'    {name!r},' for names in root._PUBLIC.values() for name in names]
    return '\n'.join([
        f'# Made from the list in nbs/{PACKAGES[package]}.ipynb by tools/stubs.py: edit the notebook.',
        *(line for module, names in modules.items() for line in imports(module, names)), *version,
        '', '__all__ = [', *names, ']', ''])


def path(package: str, root: Path = ROOT) -> Path:
    return root.joinpath(*package.split('.'), '__init__.pyi')


if __name__ == '__main__':
    for package in PACKAGES:
        path(package).write_text(make(package), encoding='utf-8')
