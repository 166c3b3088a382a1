"""Ours against what sae-lens measures on the same model, SAEs and tokens (`tests/fixtures/peer/evals.json`, made by `tests/peer/evals.py`)."""
import json, math
from pathlib import Path
import pytest
from peer.evals import CASES, LOSSES, ROWS, evaluate, model, sae, tokens
from sae_workbench import get_eval_everything_config, run_evals

PEER = json.loads((Path(__file__).parents[1]/'fixtures'/'peer'/'evals.json').read_text(encoding='utf-8'))['cases']
NOT_MEASURED = {'losses': {'total_tokens_eval_sparsity_variance'}, 'rows': {'total_tokens_eval_reconstruction'}}   # the peer counts them all the same
DIFFERENT = {
    'standard, batches of 3': {'explained_variance_legacy', 'relative_reconstruction_bias'},   # the peer's depend on the batches
    'silent': {'cossim', 'relative_reconstruction_bias'}}   # NaN in the peer, as soon as one reconstruction is zero, or all are
ALL_POSITIONS = 'seqpos_slice'   # the peer measures positions on which the SAE was not trained

@pytest.fixture(scope='module')
def lm(): return model()

def close(a, b, tol=1e-5):
    if isinstance(b, list): return len(a) == len(b) and all(map(close, a, b))
    return math.isclose(a, b, rel_tol=tol, abs_tol=tol) or (math.isnan(a) and math.isnan(b))

def differences(ours, peer):
    assert not peer.keys() - ours.keys()
    return {k for k, v in peer.items() if not close(ours[k], v)}

def flat(metrics, features): return {k: v for g in metrics.values() for k, v in g.items()} | features

@pytest.mark.parametrize('part', ['losses', 'rows'])
@pytest.mark.parametrize('name', [n for n in CASES if n != ALL_POSITIONS])
def test_equal_metrics(lm, name, part):
    ours, peer = evaluate('sae_workbench', lm, CASES[name], *dict(losses=LOSSES, rows=ROWS)[part]), PEER[name][part]
    if name == 'one head':   # the difference of two losses that are nearly equal, which the peer adds up in float32
        assert close(ours.pop('ce_loss_score', 0), peer.pop('ce_loss_score', 0), 1e-4)
    assert differences(ours, peer) == NOT_MEASURED[part] | (DIFFERENT.get(name, set()) & peer.keys())

def test_the_peer_knows_no_seqpos_slice(lm):
    everywhere = CASES[ALL_POSITIONS] | dict(seqpos=None)
    assert not differences(evaluate('sae_workbench', lm, everywhere, *ROWS), PEER[ALL_POSITIONS]['rows']) - NOT_MEASURED['rows']
    assert 'mse' in differences(evaluate('sae_workbench', lm, CASES[ALL_POSITIONS], *ROWS), PEER[ALL_POSITIONS]['rows'])

def test_the_peer_does_not_go_back_to_the_start(lm):
    "Its row metrics are of the contexts behind those of its losses: `reset_input_dataset` resets an iterator that nothing reads"
    peer, made, cfg = PEER['topk']['all'], sae('sae_workbench', **CASES['topk']), get_eval_everything_config(8, 1, 1, baselines=False)
    first, second = (flat(*run_evals(made, t, lm, None, cfg)) for t in (tokens()[:8], tokens()[8:16]))
    losses = {k for k in peer if k.startswith(('ce_', 'kl_', 'total_', 'encoder_'))}
    assert not differences(first, {k: peer[k] for k in losses})
    assert not differences(second, {k: v for k, v in peer.items() if k not in losses})
    assert 'mse' in differences(first, peer)

def test_the_peer_gives_densities_that_were_not_measured():
    assert all(map(math.isnan, PEER['topk']['norms']['feature_density']))
    assert math.isnan(PEER['silent']['rows']['cossim'])
