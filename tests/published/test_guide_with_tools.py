"""The sections of the guide "With other tools" are run, each in an environment that has its tool.

An environment takes minutes and gigabytes. `SAE_WORKBENCH_TOOLS=FOLDER` keeps them there for the next time, by the names below.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sidebar import ROOT, cells

GUIDE = ROOT/'nbs'/'guides'/'other_tools.ipynb'
TOOLS = {   # what is installed for a section, beside this library
    'nnsight': ['nnsight'],
    'circuit-tracer': ['circuit-tracer'],
    'SAEDashboard': ['sae-dashboard', 'pyarrow<20'],
    'SAEBench': ['sae-bench', 'pyarrow<20'],
    'delphi': ['eai-delphi'],
    'Lightning': ['lightning'],
    'TensorBoard and MLflow': ['tensorboard', 'mlflow'],
    'PEFT': ['peft'],
    'ONNX': ['onnx', 'onnxscript', 'onnxruntime'],
}


def sections() -> dict[str, list[dict]]:
    "The guide's cells by heading; what stands before the first one comes under an empty text"
    found, at = {'': []}, ''
    for cell in cells(GUIDE):
        heading = re.match(r'## (.+)', ''.join(cell['source'])) if cell['cell_type'] == 'markdown' else None
        at = heading[1] if heading else at
        found.setdefault(at, []).append(cell)
    return found


def code(section: str) -> list[str]:
    return [''.join(c['source']) for c in sections()[section] if c['cell_type'] == 'code']


def waits(source: str) -> bool: return source.startswith('#| eval: false')


def test_every_section_runs_with_the_page_or_here():
    waiting = [name for name in sections() if any(map(waits, code(name)))]
    assert sorted(waiting) == sorted(TOOLS)
    assert all('assert' in code(name)[-1] for name in TOOLS), 'a section shows that it worked'


def environment(name: str, folder: Path) -> Path:
    "The Python of an environment with the tool and this library, made if it is not there"
    at = folder/re.sub(r'\W+', '_', name.lower())
    python = at/'bin'/'python'
    if not python.exists():
        uv = pytest.importorskip('uv', reason='uv makes the environments').find_uv_bin()
        env = os.environ | {'UV_NATIVE_TLS': '1'}
        subprocess.run([uv, 'venv', '-q', '-p', sys.executable, at], check=True, env=env)
        subprocess.run([uv, 'pip', 'install', '-q', '-p', python, *TOOLS[name], '-e', ROOT], check=True, env=env)
    return python


@pytest.mark.slow
@pytest.mark.parametrize('name', TOOLS)
def test_a_section_of_the_guide_runs(name, tmp_path):
    python = environment(name, Path(os.environ.get('SAE_WORKBENCH_TOOLS') or tmp_path))
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'HF_HUB_OFFLINE': '1', 'TMPDIR': str(tmp_path)}
    script = tmp_path/'section.py'
    script.write_text('\n\n'.join(code('') + code(name)), encoding='utf-8')
    done = subprocess.run([python, script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
