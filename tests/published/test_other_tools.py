"""What other tools ask of this package: configs as dictionaries, help, installing it beside them, and what a wheel holds."""
import dataclasses
import json
import os
import pickle
import pydoc
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import sae_workbench
from sae_workbench.core.config import ConfigMeta
from sae_workbench.core.field_notes import field_notes

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(d_in=8, d_sae=16)
CONFIGS = [getattr(sae_workbench, n) for n in sae_workbench.__all__ if n.endswith('Config')]
SAE_CONFIGS = [c for c in CONFIGS if isinstance(c, ConfigMeta) and hasattr(c, 'architecture') and not c.__abstractmethods__]


def test_there_are_configs_to_look_at():
    assert len(SAE_CONFIGS) > 10


@pytest.mark.parametrize('cls', SAE_CONFIGS, ids=lambda c: c.__name__)
def test_a_config_becomes_a_dictionary(cls):
    "`dataclasses.asdict` is what W&B, Lightning and SAEBench call"
    known = {f.name for f in dataclasses.fields(cls)}
    more = dict(k=4, matryoshka_widths=[8, 16], n_heads=2, bottleneck_factor=2, d_out=6, n_layers=2)
    cfg = cls(**SIZES, **{n: v for n, v in more.items() if n in known}, metadata=sae_workbench.SAEMetadata(model_name='gpt2'))
    found = dataclasses.asdict(cfg)
    assert found['metadata']['model_name'] == 'gpt2' and found['d_sae'] == 16
    again = cls.from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert dataclasses.asdict(again)['metadata'] == found['metadata'] and pickle.loads(pickle.dumps(cfg)) == cfg


@pytest.mark.parametrize('cls', [c for c in CONFIGS if isinstance(c, ConfigMeta)], ids=lambda c: c.__name__)
def test_help_explains_the_options(cls):
    "Every field's comment stands in `help`, and no object of pydantic's"
    said = pydoc.plain(pydoc.render_doc(cls)).partition('Data and other attributes')[0]
    assert not re.search(r'Validator|FieldInfo|PydanticUndefined', said)
    notes = field_notes(cls)
    assert len(notes) > len(dataclasses.fields(cls))/2
    assert all(note in said for note in notes.values())


def copied(folder: Path) -> Path:
    "What a wheel is made from"
    names = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', 'sae_workbench', 'tests', 'pyproject.toml', 'setup.py', 'MANIFEST.in', 'README.md', 'LICENSE'],
                           cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, folder/name)
    return folder


def build(source: Path, command: str) -> None:
    done = subprocess.run([sys.executable, 'setup.py', '-q', command, '-d', 'dist'], cwd=source, capture_output=True, text=True)
    if 'No module named' in done.stderr or 'invalid command' in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_source_archive_has_no_half_of_the_tests(tmp_path):
    "setuptools would put test_*.py in, without the notebooks, fixtures and helpers that they need"
    build(copied(tmp_path), 'sdist')
    names = subprocess.run(['tar', 'tf', *map(str, (tmp_path/'dist').glob('*.tar.gz'))], capture_output=True, text=True).stdout.split()
    assert any(n.endswith('sae_workbench/__main__.py') for n in names) and not [n for n in names if '/tests/' in n]


def test_the_index_of_the_documentation_is_not_in_a_wheel(tmp_path):
    build(copied(tmp_path), 'bdist_wheel')
    names = zipfile.ZipFile(next((tmp_path/'dist').glob('*.whl'))).namelist()
    assert 'sae_workbench/__main__.py' in names and 'sae_workbench/formats/releases.json.gz' in names
    assert not [n for n in names if n.endswith('_modidx.py') or n.startswith('tests')]


def test_what_type_checkers_read_is_in_a_wheel(tmp_path):
    build(copied(tmp_path), 'bdist_wheel')
    names = zipfile.ZipFile(next((tmp_path/'dist').glob('*.whl'))).namelist()
    assert {'sae_workbench/py.typed', 'sae_workbench/__init__.pyi', 'sae_workbench/synthetic/__init__.pyi'} <= set(names)


def test_an_editable_install_is_a_path(tmp_path):
    "A finder that runs at import would hide the package from editors and type checkers"
    source, wheel = copied(tmp_path/'clone'), tmp_path/'wheel'
    wheel.mkdir()
    make = f'from setuptools.build_meta import build_editable; build_editable({str(wheel)!r})'
    done = subprocess.run([sys.executable, '-c', make], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = zipfile.ZipFile(next(wheel.glob('*.whl')))
    paths = [n for n in made.namelist() if n.endswith('.pth')]
    assert len(paths) == 1 and Path(made.read(paths[0]).decode().strip()).samefile(source)
    assert not [n for n in made.namelist() if n.endswith('.py')]


ASKED = """\
import torch
from sae_workbench import SAE, SAETransformerBridge, StandardSAE, StandardSAEConfig, attach
from sae_workbench.saes.base import SAE as TheSame
sae = SAE.from_pretrained('release', 'id')
reveal_type(sae.encode(torch.zeros(3)))
reveal_type(StandardSAE(StandardSAEConfig(d_in=3, d_sae=4)).cfg.d_sae)
reveal_type(attach)
reveal_type(SAETransformerBridge.run_with_saes)
same: type[TheSame] = SAE
"""


def test_an_editor_completes():
    script = pytest.importorskip('jedi').Script(ASKED + 'SAE.from_pre', project=None)
    assert 'from_pretrained' in [c.name for c in script.complete()]
    assert [d.full_name for d in script.infer(4, 7)] == ['sae_workbench.saes.base.SAE']


@pytest.mark.slow
def test_a_type_checker_knows_the_public_names(tmp_path):
    "Not one of them is Any, and a mistyped one is found"
    if not (pyright := shutil.which('pyright')):
        pytest.skip('the type checker is pyright')
    (tmp_path/'asked.py').write_text(ASKED + 'from sae_workbench import SEA\n', encoding='utf-8')
    (tmp_path/'pyrightconfig.json').write_text(json.dumps(dict(include=['asked.py'], extraPaths=[str(ROOT)])), encoding='utf-8')
    done = subprocess.run([pyright, '--pythonpath', sys.executable, '--outputjson'], cwd=tmp_path, capture_output=True, text=True)
    said = json.loads(done.stdout)['generalDiagnostics']
    assert ['"SEA" is unknown import symbol'] == [d['message'] for d in said if d['severity'] == 'error']
    types = [d['message'].partition(' is ')[2] for d in said if d['severity'] == 'information']
    assert types[:2] == ['"Tensor"', '"int"'], types
    assert '(model: Module, saes: ' in types[2] and 'saes: ' in types[3]


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['sae-dashboard', 'circuit-tracer'])
def test_installs_beside(tool, tmp_path):
    "A resolver finds versions of everything that both accept"
    uv = pytest.importorskip('uv', reason='the resolver is uv').find_uv_bin()
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    needs = re.findall(r'^  "([^"]+)"', text.partition('dependencies = [')[2].partition('\n]')[0], re.M)
    assert any(n.startswith('transformer-lens') for n in needs)
    (tmp_path/'both.in').write_text('\n'.join([*needs, tool]), encoding='utf-8')
    done = subprocess.run([uv, 'pip', 'compile', '-q', '--python-version', '3.11', 'both.in'], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {'UV_NATIVE_TLS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(rf'^{tool}==', done.stdout, re.M) and re.search('^transformer-lens==', done.stdout, re.M)
