"""Ours against the stored numbers of sae-lens (`tests/fixtures/peer`, made by `tests/peer/make_fixtures.py`)"""
import json, math
from importlib import import_module
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from peer.measure import measure, read_back, use, write_folder

FIXTURES = Path(__file__).parents[1]/'fixtures'/'peer'
TENSORS = load_file(FIXTURES/'tensors.safetensors')
CASES = json.loads((FIXTURES/'index.json').read_text(encoding='utf-8'))['cases']

class Ours:
    "Our public names, where the peer's users look for them"
    def __getattr__(self, name):
        return getattr(import_module('sae_workbench.training.config' if name == 'SAETrainerConfig' else 'sae_workbench'), name)

OURS = Ours()
VERSIONS = 'sae_lens_version', 'sae_lens_training_version'
DIFFERENT_ON_PURPOSE = {('SAETrainerConfig', 'n_batches_for_norm_estimate'): 'auto', ('LanguageModelSAERunnerConfig', 'n_batches_for_norm_estimate'): 'auto',
    ('LanguageModelSAERunnerConfig', 'n_batches_in_buffer'): 64, ('LoggingConfig', 'log_to_wandb'): False, ('LoggingConfig', 'wandb_project'): 'sae_workbench_training'}

def unpack(o, tensors=TENSORS):
    "A stored answer with its tensors"
    if isinstance(o, dict): return tensors[o['$']].clone() if '$' in o else {k: unpack(v, tensors) for k,v in o.items()}
    return [unpack(v, tensors) for v in o] if isinstance(o, list) else o

def same(ours, peer, at='', tol=1e-5, extra=False):
    "`ours` equals `peer` in every part: same keys (more in ours if `extra`), shapes and dtypes, numbers within `tol`"
    if isinstance(peer, torch.Tensor): torch.testing.assert_close(ours, peer, atol=tol, rtol=tol, msg=lambda m: f'{at}: {m}')
    elif isinstance(peer, dict):
        assert isinstance(ours, dict), f'{at}: {ours!r}, the peer has {peer!r}'
        missing, more = peer.keys() - ours.keys(), ours.keys() - peer.keys()
        assert not missing and (extra or not more), f'{at}: missing {sorted(missing)}' + ('' if extra else f', more than the peer has {sorted(more)}')
        for k,v in peer.items(): same(ours[k], v, f'{at}.{k}', tol, extra)
    elif isinstance(peer, list):
        assert len(ours) == len(peer), f'{at}: {len(ours)} items, the peer has {len(peer)}'
        for i,v in enumerate(peer): same(ours[i], v, f'{at}[{i}]', tol, extra)
    elif isinstance(peer, float) and ours is not None: assert math.isclose(ours, peer, rel_tol=tol, abs_tol=tol), f'{at}: {ours}, the peer has {peer}'
    else: assert ours == peer, f'{at}: {ours!r}, the peer has {peer!r}'

def same_folder(ours, peer, at):
    "Equal tensors; `cfg.json` with everything the peer writes, its versions aside"
    same(ours['tensors'], peer['tensors'], f'{at}.tensors')
    for k in VERSIONS: assert peer['cfg']['metadata'].pop(k) and k in ours['cfg']['metadata'], f'{at}.cfg.metadata: no {k}: v6 would take the file for one of v5'
    same(ours['cfg'], peer['cfg'], f'{at}.cfg', extra=True)

def cases(kind):
    chosen = [c for c in CASES if c['kind'] == kind]
    return pytest.mark.parametrize('case', chosen, ids=[c['name'] for c in chosen])

def refused(case): return 'error' in case['result']

def goes_further(case):
    "Whether the case is one that we support and the peer does not: TopK's auxiliary loss of normalised activations"
    return refused(case) and 'does not support activation normalization' in case['result']['message']

def answers(case, **kw):
    "Our answer and the peer's; None twice where both refuse"
    data, peer = unpack(case['data']), unpack(case['result'])
    if not refused(case): return measure(OURS, case, data, **kw), peer
    if goes_further(case): return measure(OURS, case, data, **kw), None
    with pytest.raises((ValueError, NotImplementedError)): measure(OURS, case, data, **kw)
    return None, None

def dense(sae): sae.add_hook('hook_sae_acts_post', lambda acts, hook: acts)

@pytest.mark.parametrize('way', ['chosen', 'dense', 'sparse'])
@cases('step')
def test_step(case, way, monkeypatch):
    "The same numbers by the pass that the SAE chooses, by the dense pass (which a hook asks for) and by the sparse one"
    if way == 'sparse': monkeypatch.setattr('sae_workbench.saes.standard.SPARSE_BELOW', 2.)
    ours, peer = answers(case, **dict(prepare=dense) if way == 'dense' else {})
    if goes_further(case): assert all(g.isfinite().all() for g in ours['grads'].values()) and ours['losses']['auxiliary_reconstruction_loss'] > 0
    else: same(ours, peer)

@cases('inference')
def test_inference(case, tmp_path):
    ours, peer = answers(case)
    theirs = OURS.SAE.load_from_disk(write_folder(tmp_path, peer['saved']))
    same(use(theirs, unpack(case['data'])['x']), peer['use'], 'read')
    same(ours['use'], peer['use'])
    same_folder(ours['saved'], peer['saved'], 'saved')

@cases('hooks')
def test_hooks(case):
    same(*answers(case))

@cases('files')
def test_files(case):
    ours, peer = answers(case)
    if peer is None: return
    same(ours['read'], peer['read'])
    for kind in ('training', 'inference'): same_folder(ours[kind], peer[kind], kind)

@cases('files')
def test_reads_the_peers_files(case, tmp_path):
    peer = unpack(case['result'])
    if refused(case): pytest.skip('the peer refuses this config')
    folders = [write_folder(tmp_path/kind, peer[kind]) for kind in ('training', 'inference')]
    same(read_back(OURS, *folders, unpack(case['data'])['x']), peer['read'])
    cfg = OURS.TrainingSAE.load_from_disk(folders[0]).cfg
    same({k: getattr(cfg, k) for k in case['cfg']}, case['cfg'])

@cases('init')
def test_init(case):
    ours, peer = answers(case)
    for k in ('std', 'relative_spread'): assert ours.pop(k) == pytest.approx(peer.pop(k), rel=0.05, abs=0.02 if k == 'relative_spread' else 0), k
    same(ours, peer)

@cases('run')
def test_run(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours, peer = answers(case)
    if goes_further(case): return
    for k in ('lr', 'coefficients'): same(ours['steps'][k], peer['steps'][k], f'steps.{k}', tol=1e-9)
    # the peer clamps negative thresholds when it next reads them, ours after the optimizer's step
    for w in (ours['weights'], peer['weights']):
        if 'threshold' in w: w['threshold'].clamp_(min=0)
    same(ours, peer)

@cases('defaults')
def test_defaults(case):
    ours, peer = answers(case)
    for k in VERSIONS: peer.pop(k, None)
    for (cfg,k),v in DIFFERENT_ON_PURPOSE.items():
        if cfg == case['name']: assert peer[k] != v; peer[k] = v
    same(ours, peer, case['name'], extra=True)

@cases('signature')
def test_signature(case):
    ours, peer = answers(case)
    for k,v in peer.items():
        if v == '<required>' and k in ours: ours[k] = v      # a default where the peer has none does no harm
    same(ours, peer, case['name'], extra=True)
