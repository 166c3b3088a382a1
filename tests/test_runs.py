"""What a run may delete, what it must not lose, and what it begins from."""
import errno
import json
import os
import shutil
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from sae_workbench import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, SAETrainer, SAETrainerConfig, SyntheticSource
from sae_workbench import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

from sae_workbench.core.errors import SaveError
from sae_workbench.training.checkpoint import Checkpoints
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.results import RESULTS
from faults import NOTHING, runner

TOPK = dict(architecture='topk', source='live')


def contents(folder: Path) -> dict[Path, bytes]: return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def run_of(folder: Path, **options) -> LanguageModelSAETrainingRunner:
    "A small run that may begin again in the same output folder"
    run = runner(TOPK, folder, NOTHING)
    cfg = run.cfg.to_dict() | dict(resume=None, n_checkpoints=0, keep_last_checkpoints=None, save_final_checkpoint=False) | options
    return LanguageModelSAETrainingRunner(LanguageModelSAERunnerConfig.from_dict(cfg), run.activations_store.dataset, run.model)


def small(folder: Path, **options) -> SAETrainer:
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2))
    return SAETrainer(SAETrainerConfig(32*20, 32, checkpoint_path=str(folder), **options), sae, SyntheticSource(12, 8, batch_size=32))


# Nothing of others is deleted or replaced

OTHERS = ('sae', 'checkpoint', 'v6 checkpoint', 'cache', 'file', 'empty', 'link')


def put(what: str, path: Path) -> None:
    "Something of somebody else's that has the name of a checkpoint"
    path.parent.mkdir(parents=True, exist_ok=True)
    if what in ('sae', 'v6 checkpoint'):
        TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2)).save_model(path)
        if what == 'v6 checkpoint': (path/'trainer_state.pt').write_bytes(b'state')
    elif what == 'checkpoint':
        other = small(path.parent/'other')
        other._one_step()
        Checkpoints(path.parent/'other').save(other).rename(path)
    elif what == 'cache':
        path.mkdir()
        (path/'manifest.json').write_text('{"format": "sae_workbench.cache"}')
    elif what == 'file': path.write_text('mine')
    elif what == 'empty': path.mkdir()
    else:
        (path.parent/'elsewhere').mkdir(exist_ok=True)
        path.symlink_to(path.parent/'elsewhere')


@pytest.mark.parametrize('what', OTHERS)
def test_what_has_the_name_of_a_checkpoint_stays(what, tmp_path):
    "At every number that the run takes, and at some that it does not"
    steps = [f'{32*n}' for n in (3, 6, 9, 12, 15, 18)]
    for name in (*steps, '0', '5000000', 'final_640', 'run.json', 'changes.json'):
        if what == 'checkpoint' and name not in steps: continue   # a later one: refused
        put('file' if name.endswith('json') else what, tmp_path/'ck'/name)
    before, there = contents(tmp_path), sorted((tmp_path/'ck').iterdir())
    trainer = small(tmp_path/'ck', n_checkpoints=6, keep_last_checkpoints=2, save_final_checkpoint=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        with suppress(Exception): trainer.fit()
    now = contents(tmp_path)
    kept = lambda p: p if now.get(p) == before[p] else p.with_name(p.stem + '.1.json')   # moved aside, with a warning
    assert {p: now.get(kept(p)) for p in before} == before
    assert all(os.path.lexists(kept(p) if p.suffix else p) for p in there)
    if what != 'checkpoint':
        mine = [p.name for p in Checkpoints(tmp_path/'ck').all()]
        assert mine[0].startswith('final_640') and len(mine) == 2, mine
        assert any('not a checkpoint of this run' in str(w.message) for w in said)


def test_a_damaged_checkpoint_of_the_run_is_written_again(tmp_path):
    trainer, there = small(tmp_path), Checkpoints(tmp_path, keep_last=1)
    trainer._one_step()
    path = there.save(trainer)
    (path/'sae_weights.safetensors').write_bytes(b'')
    assert there.save(trainer) == path and there.latest() == path


def test_a_run_that_goes_on_deletes_what_it_wrote_before(tmp_path):
    first = run_of(tmp_path, resume='auto', n_checkpoints=6, keep_last_checkpoints=2)
    class Asks:
        def after_step(self, trainer):
            if trainer.n_training_steps == 12: trainer.stop('a test')
    first.callbacks.append(Asks())
    with pytest.raises(Interrupted): first.run()
    second = run_of(tmp_path, resume='auto', n_checkpoints=6, keep_last_checkpoints=2)
    second.run()
    assert second.trainer.run_id == first.trainer.run_id
    assert len(Checkpoints(next((tmp_path/'checkpoints').iterdir())).all()) == 2


# A second run with the same output folder

def weights(folder: Path) -> torch.Tensor: return SAE.load_from_disk(folder).W_dec.detach()


def test_a_second_run_keeps_the_first_sae(tmp_path):
    first = run_of(tmp_path, seed=1)
    first.run()
    before = contents(tmp_path/'sae')
    with pytest.warns(UserWarning, match='holds the SAE of another run; it is kept in .*earlier-1'): run_of(tmp_path, seed=2).run()
    earlier = tmp_path/'sae'/'earlier-1'
    assert all((earlier/p.name).read_bytes() == data for p, data in before.items() if not p.name.startswith('.'))
    assert not torch.equal(weights(earlier), weights(tmp_path/'sae')) and not (tmp_path/'sae'/'log.1.jsonl').exists()
    with pytest.warns(UserWarning, match='earlier-2'): run_of(tmp_path, seed=3).run()
    assert len({weights(p.parent).sum().item() for p in (tmp_path/'sae').rglob('cfg.json')}) == 3


def test_files_of_somebody_else_in_the_output_folder_are_kept(tmp_path):
    (tmp_path/'sae').mkdir()
    for name in (*RESULTS, 'log.jsonl', 'notes.txt'): (tmp_path/'sae'/name).write_text('{"mine": 1}')
    with pytest.warns(UserWarning, match='kept in'): run_of(tmp_path).run()
    assert {p.read_text() for p in (tmp_path/'sae'/'earlier-1').iterdir()} == {'{"mine": 1}'}
    assert (tmp_path/'sae'/'notes.txt').exists() and len([*(tmp_path/'sae'/'earlier-1').iterdir()]) == len(RESULTS) + 1


def test_a_run_that_never_trains_moves_nothing(tmp_path):
    run_of(tmp_path, seed=1).run()
    before = contents(tmp_path/'sae')
    second = run_of(tmp_path, seed=2)
    class Fails:
        def on_begin(self, trainer): raise RuntimeError('before the first step')
    second.callbacks.append(Fails())
    with pytest.raises(RuntimeError): second.run()
    assert {p: d for p, d in contents(tmp_path/'sae').items() if p.name != '.lock.json'} == {p: d for p, d in before.items() if p.name != '.lock.json'}


@pytest.mark.parametrize('again', ['resume', 'auto'])
def test_the_same_run_replaces_its_own_sae(again, tmp_path):
    options = dict(resume='auto', n_checkpoints=3)
    first = run_of(tmp_path, **options)
    first.run()
    second = run_of(tmp_path, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*it is kept in')
        (first.resume if again == 'resume' else second.run)()
    assert not [*(tmp_path/'sae').glob('earlier-*')]


# The trained SAE is written whatever else fails at the end

def full(monkeypatch, folder: Path, code: int) -> None:
    "From now on nothing can be made below a folder"
    def refuse(make):
        def made(path, *args, **kwargs):
            if str(path).startswith(str(folder)): raise OSError(code, os.strerror(code))
            return make(path, *args, **kwargs)
        return made
    for name in ('mkdir', 'open'): monkeypatch.setattr(os, name, refuse(getattr(os, name)))


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
def test_a_failing_last_checkpoint_costs_no_sae(code, tmp_path, monkeypatch):
    run = run_of(tmp_path, n_checkpoints=3, save_final_checkpoint=True)
    class Fills:
        def after_step(self, trainer):
            if trainer.n_training_steps == 20: full(monkeypatch, tmp_path/'checkpoints', code)
    run.callbacks.append(Fills())
    with pytest.raises(SaveError, match='the last good one is .*576'): run.run()
    monkeypatch.undo()
    assert torch.equal(weights(tmp_path/'sae'), run.trainer.sae.to_inference().W_dec) and (tmp_path/'sae'/'README.md').exists()


@pytest.mark.parametrize('event', ['on_end', 'on_close'])
@pytest.mark.parametrize('error', [OSError, RuntimeError, SystemExit, MemoryError])
@pytest.mark.parametrize('first', [True, False])
def test_a_failing_callback_costs_no_sae(event, error, first, tmp_path):
    "Of one's own, or that of W&B, in front of the others or behind them"
    run = run_of(tmp_path)
    class Fails: pass
    def fail(trainer): raise error('the network is away')
    setattr(Fails, event, staticmethod(fail))
    plain = run._callbacks
    run._callbacks = lambda: [Fails(), *plain()] if first else [*plain(), Fails()]
    with pytest.raises(error): run.run()
    assert torch.equal(weights(tmp_path/'sae'), run.trainer.sae.to_inference().W_dec)


@pytest.mark.parametrize('what', ['evaluation', 'card', 'metrics.json', 'signal'])
def test_a_failing_last_evaluation_costs_no_sae(what, tmp_path, monkeypatch):
    import sae_workbench.training.results as results
    run = run_of(tmp_path, checkpoint_path=None)
    def fail(*args, **kwargs): raise MemoryError('out of memory')
    plain = run._callbacks
    class AtTheEnd:
        def on_end(self, trainer):
            if what == 'evaluation': trainer.evaluator = fail
            if what == 'signal': os.kill(os.getpid(), signal.SIGTERM)
    run._callbacks = lambda: [AtTheEnd(), *plain()]
    if what == 'card': monkeypatch.setattr(results, 'model_card', fail)
    if what == 'metrics.json':
        write_json = results.write_json
        monkeypatch.setattr(results, 'write_json', lambda path, data: fail() if Path(path).name == what else write_json(path, data))
    with pytest.raises((MemoryError, Interrupted)) as e: run.run()
    assert torch.equal(weights(tmp_path/'sae'), run.trainer.sae.to_inference().W_dec)
    if what == 'evaluation': assert 'The trained SAE is in' in e.value.__notes__[0]
    assert json.loads((tmp_path/'sae'/'cfg.json').read_text())['metadata']['training_tokens'] == 24*32
