"""Files and stored numbers against an installed sae-lens: `SAE_LENS_PYTHON=PEER/bin/python pytest -m slow tests/peer/test_peer_live.py`"""
import json, os, subprocess
from pathlib import Path
import pytest, torch
from fakehub import FakeHub
from producers import PRODUCERS
from safetensors.torch import load_file, save_file
from sae_workbench import SAE, upload_saes_to_huggingface
from sae_workbench.core.registry import SAE_CLASS_REGISTRY
from sae_workbench.formats.lens import NOT_IN_V6
from peer.measure import build, checkpoint, flat, use
from test_peer_parity import CASES, FIXTURES, OURS, same, unpack

PYTHON = os.environ.get('SAE_LENS_PYTHON')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason='SAE_LENS_PYTHON does not name a python that has sae-lens')]

def peer(script, *args, **env):
    "Run a script of `tests/peer` with the peer's python"
    script = Path(__file__).parents[1]/'peer'/script
    env = {k: v for k,v in os.environ.items() if k != 'PYTHONPATH'} | env
    done = subprocess.run([PYTHON, script, *args], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout

@pytest.fixture
def both():
    "For scripts that run the two libraries beside each other: that python needs what ours needs, too"
    found = subprocess.run([PYTHON, '-c', 'import fastcore, tyro, sae_lens'], capture_output=True, text=True)
    if found.returncode: pytest.skip(f'SAE_LENS_PYTHON lacks what this library needs: {found.stderr.splitlines()[-1]}')

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
            if save_as == 'save_model' and case['arch'].endswith('batchtopk'): continue      # a training folder that is no inference SAE
            folder = tmp_path/f"{case['kind']}-{case['name']}-{save_as}"
            getattr(sae, save_as)(folder/'sae')
            more = dict(training=checkpoint(sae)) if training and save_as == 'save_model' else {}
            save(folder, folder/'sae', data['x'], **more)
            count += 1
    assert f'{count} SAEs are equal' in peer('check_files.py', tmp_path)

MODES = {'none', 'layer_norm', 'constant_norm_rescale'}      # what an inference SAE may do with its input; a fourth is folded into the weights

def test_every_architecture_is_compared():
    "All that sae-lens has too, with every normalisation that it accepts"
    seen = {}
    for c in CASES:
        if c['kind'] in ('files', 'inference') and 'error' not in c['result']:
            made = 'jumprelu' if c['arch'].endswith('batchtopk') else c['arch']
            seen.setdefault(made, set()).add(c['cfg'].get('normalize_activations', 'none'))
    library = {a for a, (cls, _) in SAE_CLASS_REGISTRY.items() if cls.__module__.startswith('sae_workbench.')}
    assert library - set(NOT_IN_V6) <= seen.keys()
    for arch, modes in seen.items(): assert MODES <= modes or arch in ('matching_pursuit', 'temporal') and {'none', 'layer_norm'} <= modes, arch

def test_sae_lens_opens_what_we_upload(tmp_path):
    "Every published format, read here, uploaded to the hub, and opened from there by the peer"
    saes = {}
    for name, write in PRODUCERS.items():
        torch.manual_seed(0)
        at = tmp_path/name.replace(' ', '-')
        sae = SAE.from_pretrained(at, write(at), allow_pickle=True)
        if sae.cfg.architecture() in NOT_IN_V6: continue
        saes[at.name], x = sae, torch.randn(2, 5, sae.d_in)
        if sae.hook_z_reshaping_mode: x = x.unflatten(-1, (2, -1))      # heads, which the peer wants apart
        with torch.no_grad(): save_file(dict(x=x, latents=sae.encode(x), out=sae(x)), tmp_path/f'{at.name}.safetensors')
    with FakeHub() as hub, hub.used_here(tmp_path/'cache'):
        upload_saes_to_huggingface(saes, 'me/saes', show_progress=False)
        env = dict(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE='0', HF_HOME=str(tmp_path/'peer'), HF_HUB_DISABLE_XET='1')
        assert f'{len(saes)} SAEs are equal' in peer('check_hub.py', 'me/saes', tmp_path, **env)

def test_the_stored_surface_is_the_peers(tmp_path):
    peer('../fixtures/make_v6_surface.py', tmp_path/'surface.json')
    assert (tmp_path/'surface.json').read_text(encoding='utf-8') == (FIXTURES.parent/'v6_surface.json').read_text(encoding='utf-8')

def test_stored_numbers_are_the_peers(tmp_path):
    peer('make_fixtures.py', tmp_path)
    fresh, tensors = json.loads((tmp_path/'index.json').read_text(encoding='utf-8')), load_file(tmp_path/'tensors.safetensors')
    if (stored := json.loads((FIXTURES/'index.json').read_text(encoding='utf-8'))['sae_lens']) != fresh['sae_lens']: pytest.skip(f"sae-lens is {fresh['sae_lens']}, the numbers are of {stored}")
    name = lambda c: (c['kind'], c['name'])
    old, new = ({name(c): c for c in cs} for cs in (CASES, fresh['cases']))
    assert old.keys() == new.keys()
    for k,c in old.items(): same(unpack(new[k]['result'], tensors), unpack(c['result']), '/'.join(k))

def test_saes_inside_models_give_what_the_peers_do(both):
    assert 'results are equal' in peer('compare_models.py', PYTHONPATH=str(Path(__file__).parents[2]))   # ours is imported there too

def test_runs_on_whitened_activations_are_those_of_the_peer(both):
    assert '18 whitened runs are equal' in peer('compare_whitening.py', PYTHONPATH=str(Path(__file__).parents[2]))
