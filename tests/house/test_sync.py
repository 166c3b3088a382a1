"""The notebooks, the package, the README and the sidebar say the same."""
import ast
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import readme
import stubs
from sidebar import ROOT, cells, listed, on_disk


@pytest.fixture
def copy(tmp_path) -> Path:
    "The project's settings and notebooks, without the package"
    shutil.copy(ROOT/'settings.ini', tmp_path)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', ignore=shutil.ignore_patterns('.*'))
    return tmp_path


def nbdev(command: str, folder: Path) -> None:
    "Run one of nbdev's commands; IN_TEST would turn an export into nothing"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    done = subprocess.run([Path(sysconfig.get_path('scripts'))/command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def texts(folder: Path, pattern: str) -> dict[str, str]:
    "The files below a folder by relative path"
    return {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for p in folder.rglob(pattern) if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)}


def differences(ours: dict[str, str], made: dict[str, str]) -> list[str]:
    return sorted(name for name in ours.keys() | made.keys() if ours.get(name) != made.get(name))


def test_package_is_what_the_notebooks_export(copy):
    nbdev('nbdev_export', copy)
    assert not differences(texts(ROOT/'sae_workbench', '*.py'), texts(copy/'sae_workbench', '*.py')), 'run nbdev_export, remove what no notebook exports'


def test_exporting_twice_changes_nothing(copy):
    nbdev('nbdev_export', copy)
    first = texts(copy/'sae_workbench', '*.py')
    nbdev('nbdev_export', copy)
    assert not differences(first, texts(copy/'sae_workbench', '*.py'))


def test_notebooks_are_clean(copy):
    nbdev('nbdev_clean', copy)
    assert not differences(texts(ROOT/'nbs', '*.ipynb'), texts(copy/'nbs', '*.ipynb')), 'run nbdev_clean'


def test_readme_is_made_from_the_index():
    assert readme.make() == (ROOT/'README.md').read_text(encoding='utf-8'), 'run python tools/readme.py'


def test_readme_has_the_command_that_ci_runs():
    command = re.findall(r'^```sh\n(.*-m pytest.*)\n```$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M)
    assert len(command) == 1 and '.venv/bin/python -m pytest' in command[0]


@pytest.mark.parametrize('package', stubs.PACKAGES)
def test_editors_are_told_the_public_names(package):
    assert stubs.make(package) == stubs.path(package).read_text(encoding='utf-8'), 'run python tools/stubs.py'


def test_every_package_that_imports_late_has_a_stub():
    late = [p.parent for p in ROOT.glob('sae_workbench/**/__init__.py') if '\n_PUBLIC' in p.read_text(encoding='utf-8')]
    assert sorted(late) == sorted(stubs.path(package).parent for package in stubs.PACKAGES)


def test_every_notebook_stands_in_the_sidebar():
    names = listed()
    assert sorted(names) == on_disk(), 'one line per notebook in _quarto.yml'
    assert len(set(names)) == len(names)


def mixed(cell: dict) -> bool:
    "Whether a cell both imports and does something else, which the documentation's build would run"
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code' or '%%' in source or 'eval: false' in source:
        return False
    kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body}
    return len(kinds) == 2


def test_imports_stand_in_cells_of_their_own():
    found = [f"{name}: {''.join(cell['source'])[:60]}" for name in on_disk() for cell in cells(ROOT/name) if mixed(cell)]
    assert not found


def test_cells_are_code_or_prose():
    found = [f"{name}: {cell['id']} is {cell['cell_type']}" for name in on_disk() for cell in cells(ROOT/name)
             if cell['cell_type'] not in ('code', 'markdown')]
    assert not found, 'a cell of another kind is shown by no page'
