"""A checkpoint of the first format, written by the code that had it: the run goes on and ends with the weights with which it ended there."""
import json
import warnings

import pytest
import torch
from fixtures.make_format_1 import HERE, RUNS, machine, trainer
from sae_workbench import Checkpoints, save_checkpoint
from sae_workbench.core.files import read_tensors
from sae_workbench.core.folders import read_manifest


@pytest.mark.parametrize('name', RUNS)
def test_a_run_goes_on_from_the_first_format(name, tmp_path):
    t, wanted = trainer(name), read_tensors(HERE/f'{name}.safetensors')
    folder = Checkpoints(HERE/name).latest()
    assert read_manifest(folder)['version'] == 1
    Checkpoints(HERE/name).load(t)
    assert t.run_id == read_manifest(folder)['run']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        t.fit()
    found = dict(t.sae.state_dict()) | dict(n_forward_passes_since_fired=t.statistics.n_forward_passes_since_fired)
    same = json.loads((HERE/'machine.json').read_text(encoding='utf-8')) == machine()   # bits depend on it
    for k, v in wanted.items(): torch.testing.assert_close(found[k], v, **(dict(rtol=0, atol=0) if same else dict(rtol=1e-2, atol=1e-3)))


def test_what_it_has_kept_comes_back():
    t = trainer('standard')
    Checkpoints(HERE/'standard').load(t)
    assert (t.n_training_steps, t.n_training_samples, t.skips.total, t.sae.cfg.metadata.n_skipped_steps) == (14, 224, 1, 1)
    assert [(c['step'], c['name']) for c in t.changes.applied] == [(6, 'lr'), (9, 'l1')] and t.norm.batches == 5
    assert t.coefficient_schedulers['l1'].final_value == .1 and t.optimizer.state


def test_it_is_written_again_in_the_present_format(tmp_path):
    first, second = trainer('bfloat16'), trainer('bfloat16')
    Checkpoints(HERE/'bfloat16').load(first)
    path = save_checkpoint(tmp_path/'again', first, first.data_provider)
    assert read_manifest(path)['version'] == 2
    path.rename(tmp_path/'128')
    Checkpoints(tmp_path).load(second)
    def tensors(state): return {k: v for k, v in state.items()}
    torch.testing.assert_close(tensors(first.state.state_dict()), tensors(second.state.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize('name', RUNS)
def test_a_trainers_state_alone_can_be_read(name):
    t = trainer(name)
    before = t.sae.W_dec.detach().clone()
    t.load_trainer_state(Checkpoints(HERE/name).latest())
    assert torch.equal(t.sae.W_dec, before) and t.position == tuple(read_manifest(Checkpoints(HERE/name).latest())['position'])
