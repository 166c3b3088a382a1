"""Files and stored numbers against an installed sae-lens: `SAE_LENS_PYTHON=PEER/bin/python pytest -m slow tests/test_peer_live.py`"""
import json, os, subprocess
from pathlib import Path
import pytest
from safetensors.torch import load_file, save_file
from peer.measure import build, checkpoint, flat, use
from test_peer_parity import CASES, FIXTURES, OURS, same, unpack

PYTHON = os.environ.get('SAE_LENS_PYTHON')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason='SAE_LENS_PYTHON does not name a python that has sae-lens')]

def peer(script, *args, with_ours=False):
    "Run a script of `tests/peer` with the peer's python, where it may import ours as well"
    script = Path(__file__).parent/'peer'/script
    env = {k: v for k,v in os.environ.items() if k != 'PYTHONPATH'} | ({'PYTHONPATH': str(Path(__file__).parent.parent)} if with_ours else {})
    done = subprocess.run([PYTHON, script, *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout

def save(folder, saved, x, **more):
    "Put a saved SAE's outputs beside it"
    save_file(dict(x=x) | flat(use(OURS.SAE.load_from_disk(saved), x) | more), folder/'expected.safetensors')

def test_sae_lens_reads_our_files(tmp_path):
    count = 0
    for case in CASES:
        if case['kind'] not in ('files', 'inference') or 'error' in case['result']: continue
        data = unpack(case['data'])
        training = case['kind'] == 'files'
        sae = build(OURS, case, data['weights'], 'TrainingSAE' if training else 'SAE')
        for save_as in ('save_model', 'save_inference_model') if training else ('save_model',):
            if (save_as, case['arch']) == ('save_model', 'batchtopk'): continue      # a training folder that is no inference SAE
            folder = tmp_path/f"{case['kind']}-{case['name']}-{save_as}"
            getattr(sae, save_as)(folder/'sae')
            more = dict(training=checkpoint(sae)) if training and save_as == 'save_model' else {}
            save(folder, folder/'sae', data['x'], **more)
            count += 1
    assert f'{count} SAEs are equal' in peer('check_files.py', tmp_path)

def test_stored_numbers_are_the_peers(tmp_path):
    peer('make_fixtures.py', tmp_path)
    fresh, tensors = json.loads((tmp_path/'index.json').read_text()), load_file(tmp_path/'tensors.safetensors')
    if (stored := json.loads((FIXTURES/'index.json').read_text())['sae_lens']) != fresh['sae_lens']: pytest.skip(f"sae-lens is {fresh['sae_lens']}, the numbers are of {stored}")
    name = lambda c: (c['kind'], c['name'])
    old, new = ({name(c): c for c in cs} for cs in (CASES, fresh['cases']))
    assert old.keys() == new.keys()
    for k,c in old.items(): same(unpack(new[k]['result'], tensors), unpack(c['result']), '/'.join(k))

def test_saes_inside_models_give_what_the_peers_do(): assert 'results are equal' in peer('compare_models.py', with_ours=True)
