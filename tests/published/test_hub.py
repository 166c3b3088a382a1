"""`SAE.from_pretrained` through the real client of the hub: against a hub on localhost, then from the cache with sockets blocked."""
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakehub import FakeHub
from safetensors.torch import save

ROOT = Path(__file__).resolve().parents[2]
RES_JB, GEMMA, MINE = 'jbloom/GPT2-Small-SAEs-Reformatted', 'google/gemma-scope-2b-pt-res', 'me/my-saes'

SCRIPT = '''
import json, sys, warnings
blocked = []
if {offline}:
    def refuse(event, args):
        if event in ('socket.connect', 'socket.getaddrinfo'):
            blocked.append(event)
            raise OSError('sockets are blocked')
    sys.addaudithook(refuse)
from sae_workbench import SAE, LoadError
out = {{}}
for name, args, kw in json.loads(sys.stdin.read()):
    try:
        sae, cfg, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(*args, **kw)
        out[name] = dict(sum=sae.W_dec.double().sum().item(), cfg=cfg, sparsity=None if sparsity is None else len(sparsity))
    except Exception as e:
        kind = 'LoadError' if isinstance(e, LoadError) else type(e).__name__
        out[name] = dict(error=f'{{kind}}: {{e}}')
print(json.dumps(dict(out, blocked=blocked)))
'''


def run(calls: list, home: Path, url: str = 'http://127.0.0.1:9', offline: bool = False, **env) -> dict:
    "Load SAEs in a fresh process; the answers by name"
    env = {k: v for k, v in os.environ.items() if not k.startswith('HF_')} | dict(
        HF_ENDPOINT=url, HF_HOME=str(home), HF_HUB_OFFLINE=str(int(offline)), HF_HUB_DISABLE_XET='1', PYTHONPATH=str(ROOT)) | env
    done = subprocess.run([sys.executable, '-c', SCRIPT.format(offline=offline)], env=env, cwd=ROOT, text=True,
                          input=json.dumps(calls), capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def native(seed: int) -> tuple[dict[str, bytes], float]:
    "The files of a version-5 SAE, and the sum of its decoder"
    torch.manual_seed(seed)
    w = dict(W_enc=torch.randn(8, 16), b_enc=torch.randn(16), W_dec=torch.randn(16, 8), b_dec=torch.randn(8))
    cfg = dict(d_in=8, d_sae=16, dtype='float32', hook_name='blocks.8.hook_resid_pre', model_name='gpt2-small')
    files = {'cfg.json': json.dumps(cfg).encode(), 'sae_weights.safetensors': save(w),
             'sparsity.safetensors': save({'sparsity': torch.full((16,), -3.)})}
    return files, w['W_dec'].double().sum().item()


def npz() -> tuple[bytes, float]:
    torch.manual_seed(2)
    arrays = {k: torch.randn(*s).numpy() for k, s in dict(W_enc=(8, 16384), W_dec=(16384, 8), b_enc=(16384,), b_dec=(8,), threshold=(16384,)).items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue(), float(arrays['W_dec'].astype(np.float64).sum())


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]: return {f'{folder}/{k}': v for k, v in files.items()}


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    "Everything that is asked, online and then from the cache"
    home = tmp_path_factory.mktemp('hf')
    (jb, jb_sum), (mine, mine_sum), (params, gemma_sum) = native(0), native(1), npz()
    path = 'layer_12/width_16k/average_l0_82'
    other = below('blocks.9.hook_resid_pre', native(3)[0])
    broken = mine | {'sae_weights.safetensors': mine['sae_weights.safetensors'][:-8]}
    repos = {RES_JB: below('blocks.8.hook_resid_pre', jb) | other, GEMMA: {f'{path}/params.npz': params},
             MINE: below('layer_3', mine) | below('broken', broken), 'me/pickled': {'layer0.sae.pt': b'x'}, 'me/empty': {'README.md': b'x'}}
    good = [('jb', ['gpt2-small-res-jb', 'blocks.8.hook_resid_pre'], {}),
            ('gemma', ['gemma-scope-2b-pt-res-canonical', 'layer_12/width_16k/canonical'], dict(dtype='bfloat16')),
            ('gemma by path', [GEMMA, path], {}), ('mine', [MINE, 'layer_3'], {})]
    bad = [('no file', ['gpt2-small-res-jb', 'blocks.10.hook_resid_pre'], {}), ('no repo', ['me/nowhere', 'x'], {}),
           ('gated', ['me/gated', 'x'], {}), ('no revision', [RES_JB, 'blocks.8.hook_resid_pre'], dict(revision='v2')),
           ('no id', ['gpt2-small-res-jb', 'blocks.88.hook_resid_pre'], {}), ('several', [MINE], {}),
           ('cut', [MINE, 'broken'], {}), ('unknown', ['me/empty'], {}), ('outside', [MINE, '../../x'], {}),
           ('pickle', ['me/pickled', 'layer0.sae.pt'], {})]
    with FakeHub(repos, gated=('me/gated',)) as hub:
        online = run(good + bad, home, hub.url)
        asked = list(hub.asked)
        again = run([('mine', [MINE, 'layer_3'], dict(force_download=True))], home, hub.url)
        forced = hub.asked[len(asked):]
    offline = run(good + [('not cached', ['gpt2-small-res-jb', 'blocks.7.hook_resid_pre'], {}), ('mine', [MINE, 'layer_3'], {})], home, offline=True)
    only = run([('jb', ['gpt2-small-res-jb', 'blocks.8.hook_resid_pre'], dict(local_files_only=True))], home)
    sums = dict(jb=jb_sum, gemma=gemma_sum, mine=mine_sum) | {'gemma by path': gemma_sum}
    return dict(online=online, offline=offline, only=only, asked=asked, again=again, forced=forced, sums=sums, home=home)


@pytest.mark.parametrize('name', ['jb', 'gemma', 'gemma by path', 'mine'])
@pytest.mark.parametrize('way', ['online', 'offline'])
def test_loads(loaded, way, name):
    found = loaded[way][name]
    assert 'error' not in found, found
    assert found['sum'] == pytest.approx(loaded['sums'][name], abs=1. if name == 'gemma' else 1e-9)   # gemma is asked for in bfloat16


def test_only_what_is_needed_is_downloaded(loaded):
    fetched = {a.removeprefix('GET ') for a in loaded['asked'] if a.startswith('GET') and '/resolve/' in a}
    assert fetched and not [f for f in fetched if 'blocks.9' in f]


def test_facts_of_the_registry(loaded):
    cfg = loaded['online']['gemma']['cfg']
    assert cfg['metadata']['neuronpedia_id'] == 'gemma-2-2b/12-gemmascope-res-16k' and cfg['dtype'] == 'bfloat16'
    assert loaded['online']['jb']['cfg']['metadata']['model_from_pretrained_kwargs'] == {'center_writing_weights': True}
    assert loaded['online']['gemma by path']['cfg']['metadata']['model_name'] == 'gemma-2-2b'


def test_sparsity(loaded):
    assert loaded['online']['jb']['sparsity'] == loaded['offline']['jb']['sparsity'] == 16 and loaded['online']['gemma']['sparsity'] is None


ERRORS = {'no file': ('LoadError', 'cfg.json: no such file in the repository'), 'no repo': ('LoadError', 'no such repository, or it is private'),
          'gated': ('LoadError', 'the repository is gated: accept its terms'), 'no revision': ('LoadError', "no such revision: 'v2'"),
          'no id': ('ConfigError', "did you mean 'blocks.8.hook_resid_pre'"), 'several': ('LoadError', 'holds 2 SAEs; name one: broken, layer_3'),
          'cut': ('LoadError', 'not a whole safetensors file'), 'unknown': ('LoadError', 'no SAE of a known format'),
          'outside': ('LoadError', 'expected a relative path'), 'pickle': ('LoadError', 'pass allow_pickle=True')}


@pytest.mark.parametrize('name', ERRORS)
def test_errors(loaded, name):
    kind, message = ERRORS[name]
    error = loaded['online'][name].get('error', 'none')
    assert error.startswith(kind) and message in error


def test_offline_needs_no_socket(loaded):
    assert loaded['offline']['blocked'] == []
    assert 'not in the cache' in loaded['offline']['not cached']['error']
    assert 'error' not in loaded['only']['jb']


def test_force_download(loaded):
    assert 'error' not in loaded['again']['mine']
    assert [a for a in loaded['forced'] if a.startswith('GET') and a.endswith('layer_3/sae_weights.safetensors')]


@pytest.mark.parametrize('name', ['cfg.json', 'sae_weights.safetensors'])
def test_a_flipped_byte_is_found(loaded, tmp_path, name):
    home = tmp_path/'hf'
    shutil.copytree(loaded['home'], home, symlinks=True)
    file = next(p for p in home.rglob(name) if 'blocks.8' in str(p)).resolve()
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    found = run([('jb', ['gpt2-small-res-jb', 'blocks.8.hook_resid_pre'], {})], home, offline=True)
    assert 'the file was damaged; load it with force_download=True' in found['jb']['error']
