"""The recipes give what was recorded: the quick one always, those on SmolLM2 with -m slow"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_workbench.core.files import read_json
from sae_workbench.core.serial import read_plain

FOLDER = Path(__file__).parents[2]/'recipes'
NAMES = sorted(p.stem for p in FOLDER.glob('*.yaml'))


def recipes(*args) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(FOLDER.parent), os.environ.get('PYTHONPATH', '')]))
    code = 'from sae_workbench.apps.cli import main; main()'
    return subprocess.run([sys.executable, '-c', code, 'recipes', *args], cwd=FOLDER.parent, env=env, capture_output=True, text=True)


def test_each_recipe_is_recorded_with_two_seeds_or_more():
    recorded = read_json(FOLDER/'recorded.json')
    assert sorted(recorded) == NAMES
    for name, r in recorded.items():
        assert len(r['runs']) == len(r['seeds']) >= 2 and r['seeds'][0] == read_plain(FOLDER/f'{name}.yaml')['seed'], name
        assert all(m['value'] == r['runs'][0][k] and m['tolerance'] > 0 for k, m in r['metrics'].items())


@pytest.mark.parametrize('name', [n if n == 'synthetic_topk' else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_recipe_gives_what_was_recorded(name):
    done = recipes(name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_recipe():
    done = recipes('synthetic_topkk')
    assert done.returncode == 2 and "did you mean 'synthetic_topk'" in done.stderr
