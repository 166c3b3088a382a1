"""What a run may delete, what it must not lose, and what it begins from."""
import errno
import json
import os
import re
import signal
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_workbench import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, SAETrainer, SAETrainerConfig, SyntheticSource
from sae_workbench import TopKSAE, TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

from sae_workbench.core.errors import ConfigError, SaveError
from sae_workbench.core.registry import get_sae_training_class
from sae_workbench.training.checkpoint import Checkpoints
from sae_workbench.training.preempt import Interrupted
from sae_workbench.training.results import RESULTS
from faults import NOTHING, runner, sae_config

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
        other.one_step()
        Checkpoints(path.parent/'other').save(other).rename(path)
    elif what == 'cache':
        path.mkdir()
        (path/'manifest.json').write_text('{"format": "sae_workbench.cache"}', encoding='utf-8')
    elif what == 'file': path.write_text('mine', encoding='utf-8')
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
    trainer.one_step()
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
    for name in (*RESULTS, 'log.jsonl', 'notes.txt'): (tmp_path/'sae'/name).write_text('{"mine": 1}', encoding='utf-8')
    with pytest.warns(UserWarning, match='kept in'): run_of(tmp_path).run()
    assert {p.read_text(encoding='utf-8') for p in (tmp_path/'sae'/'earlier-1').iterdir()} == {'{"mine": 1}'}
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
    plain = run.make_callbacks
    run.make_callbacks = lambda: [Fails(), *plain()] if first else [*plain(), Fails()]
    with pytest.raises(error): run.run()
    assert torch.equal(weights(tmp_path/'sae'), run.trainer.sae.to_inference().W_dec)


@pytest.mark.parametrize('what', ['evaluation', 'card', 'metrics.json', 'signal'])
def test_a_failing_last_evaluation_costs_no_sae(what, tmp_path, monkeypatch):
    import sae_workbench.training.results as results
    run = run_of(tmp_path, checkpoint_path=None)
    def fail(*args, **kwargs): raise MemoryError('out of memory')
    plain = run.make_callbacks
    class AtTheEnd:
        def on_end(self, trainer):
            if what == 'evaluation': trainer.evaluator = fail
            if what == 'signal': os.kill(os.getpid(), signal.SIGTERM)
    run.make_callbacks = lambda: [AtTheEnd(), *plain()]
    if what == 'card': monkeypatch.setattr(results, 'model_card', fail)
    if what == 'metrics.json':
        write_json = results.write_json
        monkeypatch.setattr(results, 'write_json', lambda path, data: fail() if Path(path).name == what else write_json(path, data))
    with pytest.raises((MemoryError, Interrupted)) as e: run.run()
    assert torch.equal(weights(tmp_path/'sae'), run.trainer.sae.to_inference().W_dec)
    if what == 'evaluation': assert 'The trained SAE is in' in e.value.__notes__[0]
    assert json.loads((tmp_path/'sae'/'cfg.json').read_text(encoding='utf-8'))['metadata']['training_tokens'] == 24*32


# Starting with the weights of another SAE

def starting_from(path: Path, sae, folder: Path, model=None, **options):
    run = runner(TOPK, folder, NOTHING)
    cfg = run.cfg.to_dict() | dict(resume=None, n_checkpoints=0, keep_last_checkpoints=None, save_final_checkpoint=False, output_path=None)
    cfg |= dict(sae=sae.to_dict(), from_pretrained_path=str(path)) | options
    return LanguageModelSAETrainingRunner(LanguageModelSAERunnerConfig.from_dict(cfg), run.activations_store.dataset, run.model if model is None else model)


LOSSES = dict(standard=dict(l1_coefficient=.777, l1_warm_up_steps=3, lp_norm=.9), gated=dict(l1_coefficient=.777, l1_warm_up_steps=3),
              jumprelu=dict(l0_coefficient=.777, l0_warm_up_steps=3, jumprelu_bandwidth=.3, jumprelu_sparsity_loss_mode='tanh', pre_act_loss_coefficient=3e-6),
              topk=dict(k=5, aux_loss_coefficient=.777), batchtopk=dict(k=5., aux_loss_coefficient=.777, topk_threshold_lr=.5),
              matryoshka_batchtopk=dict(k=5., matryoshka_widths=[16, 32], use_matryoshka_aux_loss=True))


@pytest.mark.parametrize('architecture', LOSSES)
def test_the_options_of_the_loss_are_those_of_the_run(architecture, tmp_path):
    first = sae_config(dict(architecture=architecture))
    get_sae_training_class(architecture)[0](first).save_model(tmp_path/'first')
    asked = replace(first, **LOSSES[architecture])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        run = starting_from(tmp_path/'first', asked, tmp_path)
        sae = run.run()
    assert {k: getattr(sae.cfg, k) for k in LOSSES[architecture]} == LOSSES[architecture]
    for k, v in LOSSES[architecture].items():
        if k.removesuffix('_coefficient') + '_coefficient' == k and k in run.trainer.coefficient_schedulers:
            assert run.trainer.coefficient_schedulers[k].final_value == v


@pytest.mark.parametrize('option, value', [('d_sae', 64), ('architecture', 'batchtopk'), ('normalize_activations', 'expected_average_only_in'),
                                           ('apply_b_dec_to_input', False)])
def test_what_the_weights_cannot_have_is_refused_before_a_model_is_loaded(option, value, tmp_path, monkeypatch):
    sae = TopKTrainingSAE(sae_config(TOPK))
    sae.save_inference_model(tmp_path/'first')
    asked = sae_config(dict(architecture=value)) if option == 'architecture' else replace(sae.cfg, **{option: value})
    def load(cfg): raise AssertionError('a model was loaded')
    monkeypatch.setattr('sae_workbench.training.run_parts.load_run_model', load)
    run = runner(TOPK, tmp_path, NOTHING)
    cfg = run.cfg.to_dict() | dict(sae=asked.to_dict(), from_pretrained_path=str(tmp_path/'first'), dataset_path='x')
    there = 'topk' if option == 'architecture' else sae.cfg.to_dict()[option]
    with pytest.raises(ConfigError, match=re.escape(f'{option}: {there!r} in the folder, {value!r} in the run')):
        LanguageModelSAETrainingRunner(LanguageModelSAERunnerConfig.from_dict(cfg))


def test_an_sae_that_is_handed_over_says_where_it_differs(tmp_path):
    sae, cfg = TopKTrainingSAE(sae_config(TOPK)), runner(TOPK, tmp_path, NOTHING).cfg
    run = runner(TOPK, tmp_path, NOTHING)
    data, model = run.activations_store.dataset, run.model
    with pytest.warns(UserWarning, match='override_sae is trained with its own options.*k is 3, not 9'):
        LanguageModelSAETrainingRunner(replace(cfg, sae=replace(sae.cfg, k=9)), data, model, sae)
    with pytest.raises(ConfigError, match='override_sae has d_in=8'):
        LanguageModelSAETrainingRunner(replace(cfg, sae=replace(sae.cfg, d_in=9)), data, model, sae)
    sae.save_model(tmp_path/'first')
    with pytest.raises(ConfigError, match='both given'):
        LanguageModelSAETrainingRunner(replace(cfg, from_pretrained_path=str(tmp_path/'first')), data, model, sae)


# For longer than was planned

@pytest.mark.parametrize('norm', ['none', 'expected_average_only_in'])
@pytest.mark.parametrize('where', ['middle', 'end'])
@pytest.mark.parametrize('how', ['auto', 'from'])
def test_a_run_goes_on_for_longer(norm, where, how, tmp_path):
    def run(tokens, folder=tmp_path, resume='auto', **kw):
        case = runner(dict(TOPK, norm=norm), folder, NOTHING)
        cfg = replace(case.cfg, training_tokens=tokens, resume=resume, lr_decay_steps=0, save_final_checkpoint=where == 'end', **kw)
        return LanguageModelSAETrainingRunner(cfg, case.activations_store.dataset, case.model)
    whole = run(48*32, tmp_path/'whole').run()
    first = run(24*32)
    if where == 'middle': first.callbacks.append(type('Asks', (), dict(after_step=lambda self, t: t.stop('a test') if t.n_training_steps == 15 else None))())
    with suppress(Interrupted): first.run()
    folder = next((tmp_path/'checkpoints').iterdir())
    again = run(48*32) if how == 'auto' else run(48*32, resume=None, resume_from_checkpoint=str(Checkpoints(folder).latest()))
    with pytest.warns(UserWarning, match=r'training_tokens=768, which now goes on to 1_536\. The learning rate is the same'): sae = again.run()
    assert again.trainer.n_training_steps == 48
    torch.testing.assert_close(sae.W_dec, whole.W_dec, rtol=1e-3, atol=1e-4)
    shorter = run(24*32)
    with suppress(Interrupted): shorter.run()
    assert shorter.trainer is not None and shorter.trainer.n_training_steps == 24   # a run of its own
