"""NaN and infinity, put wherever they can come from: never in the weights, never on disk, and a run that skips them goes on exactly"""
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sae_workbench import (Callback, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LayerSources, LoggingConfig, MixingBuffer,
                           ModuleSource, NonFiniteError, SAETrainer, SAETrainerConfig, SyntheticSource, TensorSource, TrainingSAE, write_cache)
from sae_workbench.activations.cache_format import ROWS, SUMS, row_checksums
from sae_workbench.core.files import not_finite, read_tensors, write_tensors
from sae_workbench.core.registry import get_sae_training_class
from sae_workbench.training.callbacks import read_log
from sae_workbench.training.checkpoint import Checkpoints, latest, save_checkpoint

D_IN, D_SAE, BATCH, STEPS, VOCAB = 8, 32, 32, 12, 20
OPTIONS = dict(standard=dict(l1_coefficient=.1), gated=dict(l1_coefficient=.1), jumprelu=dict(l0_coefficient=.1, jumprelu_bandwidth=.5),
               topk=dict(k=3), abstopk=dict(k=3), batchtopk=dict(k=3), matching_pursuit=dict(max_iterations=3),
               matryoshka_batchtopk=dict(k=3, matryoshka_widths=[8, 32]))
LOGGER = dict(wandb_log_frequency=2, eval_every_n_wandb_logs=2)
pytestmark = pytest.mark.filterwarnings('ignore:.*skipped', 'ignore:the last evaluation gave NaN')


def sae_config(architecture, **kw): return get_sae_training_class(architecture)[1](d_in=D_IN, d_sae=D_SAE, **OPTIONS[architecture] | kw)


class Data:
    "Batches that depend on their number; some of them are spoilt"
    def __init__(self, bad=(), value=torch.nan, dtype=torch.float32): self.n, self.bad, self.value, self.dtype = 0, bad, value, dtype
    def __iter__(self): return self
    def __next__(self):
        x = SyntheticSource(12, D_IN, batch_size=BATCH).batch(self.n)[0].to(self.dtype)
        if self.n in self.bad:
            x[self.n % BATCH, 1] = self.value
        self.n += 1
        return x

    def state_dict(self): return dict(n=self.n)
    def load_state_dict(self, state): self.n = state['n']


def trainer(data, architecture='topk', folder=None, callbacks=(), sae={}, steps=STEPS, **kw) -> SAETrainer:
    torch.manual_seed(0)
    options = dict(lr=1e-2, lr_warm_up_steps=3, lr_decay_steps=4, dead_feature_window=3, logger=LoggingConfig(**LOGGER))
    if folder is not None:
        options |= dict(checkpoint_path=str(folder), n_checkpoints=4, save_final_checkpoint=True)
    return SAETrainer(SAETrainerConfig(steps*BATCH, BATCH, **options | kw), TrainingSAE.from_dict(sae_config(architecture, **sae).to_dict()), data,
                      callbacks=callbacks)


def written(folder: Path) -> int:
    "Files of tensors in a folder, and its subfolders; none of them holds NaN or infinity"
    files = [p for p in folder.rglob('*.safetensors') if p.name != 'activations_store_state.safetensors']
    for p in files:
        assert not not_finite(read_tensors(p)), p
    return len(files)


def everything(t: SAETrainer) -> dict[str, torch.Tensor]:
    "What a skipped step must not change"
    out = {k: v.clone() for k, v in t.sae.state_dict().items()}
    for i, s in enumerate(t.optimizer.state_dict()['state'].values()):
        out |= {f'{i}/{k}': v.clone() for k, v in s.items()}
    return out | {k: torch.as_tensor(v).clone() for k, v in t.statistics.state_dict().items()}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


VARIANTS = [dict(), dict(sae=dict(dtype='bfloat16')), dict(autocast=True), dict(sae=dict(normalize_activations='layer_norm'))]


@pytest.mark.parametrize('architecture', OPTIONS)
@pytest.mark.parametrize('variant', VARIANTS, ids=['float32', 'bfloat16', 'autocast', 'layer_norm'])
def test_a_bad_row(architecture, variant, tmp_path):
    "In the first, a middle and the last batch: stopped with good weights on disk, or skipped with nothing changed"
    for at, value in ((0, torch.nan), (5, torch.inf), (STEPS - 1, torch.nan)):
        t = trainer(Data([at], value), architecture, tmp_path/f'stop{at}', **variant)
        with pytest.raises(NonFiniteError, match=rf'step {at} \(rows {at*BATCH} to .*first row {at % BATCH} of the batch, dimension 1') as e:
            t.fit()
        assert e.value.checkpoint == latest(tmp_path/f'stop{at}') and e.value.checkpoint.name == str(at*BATCH)
        t = trainer(Data([at], value), architecture, tmp_path/f'skip{at}', on_nonfinite='skip', **variant)
        for _ in range(at):
            t.one_step()
        before = everything(t)
        t.one_step()
        assert_same(before, everything(t))
        t.fit()
        assert t.data_provider.n == t.n_training_steps == STEPS and t.skips.total == t.sae.cfg.metadata.n_skipped_steps == 1
    assert written(tmp_path) > 20


@pytest.mark.parametrize('architecture', OPTIONS)
def test_a_bad_gradient(architecture, tmp_path):
    for mode in ('stop', 'skip'):
        t = trainer(Data(), architecture, tmp_path/mode, on_nonfinite=mode)
        spoilt = []
        t.sae.W_dec.register_hook(lambda g: spoilt.append(1) or g*torch.inf if t.n_training_steps == 4 and not spoilt else g)
        if mode == 'stop':
            with pytest.raises(NonFiniteError, match='step 4 .*the gradient of W_dec'):
                t.fit()
            assert all(p.grad is None for p in t.sae.parameters())   # else the next step would add to it
            t.fit()
            assert t.n_training_steps == STEPS
        else:
            t.fit()
            assert t.skips.state_dict() == dict(total=1, in_a_row=0, last=4)
    assert written(tmp_path)


class Spoils(Callback):
    "Puts NaN into a weight after a step"
    def after_step(self, trainer):
        if trainer.n_training_steps == 5:
            with torch.no_grad():
                trainer.sae.W_enc[0, 0] = torch.nan


@pytest.mark.parametrize('mode', ['stop', 'skip'])
@pytest.mark.parametrize('architecture', OPTIONS)
def test_a_bad_weight(architecture, mode, tmp_path):
    "Is found by the next step that is logged, is never skipped, and is not written"
    t = trainer(Data(), architecture, tmp_path, on_nonfinite=mode, callbacks=[Spoils()])
    with pytest.raises(NonFiniteError, match='W_enc|W_dec') as e:
        t.fit()
    assert t.n_training_steps <= 6
    if getattr(e.value, 'checkpoint', None):
        TrainingSAE.load_from_disk(e.value.checkpoint)
    for write in (t.sae.save_model, t.sae.save_inference_model, partial(save_checkpoint, trainer=t)):
        with pytest.raises(NonFiniteError):
            write(tmp_path/'bad')
    assert written(tmp_path) and not list(tmp_path.glob('bad/*')) and not list(tmp_path.glob('.*.tmp'))


def test_a_bad_moment_of_the_optimiser_is_not_written(tmp_path):
    t = trainer(Data())
    t.one_step()
    t.optimizer.state[t.optimizer.stepped[0].t]['exp_avg'][0] = torch.nan
    with pytest.raises(NonFiniteError, match='optimiser'):
        save_checkpoint(tmp_path/'x', t)
    assert not list(tmp_path.iterdir())


def test_float16_activations():
    "What overflowed in float16 is infinite; large finite numbers are not an error, unless scaling makes them overflow"
    with pytest.raises(NonFiniteError, match='step 0 .*first row 0'):
        trainer(Data([0], 1e6, torch.float16)).fit()
    trainer(Data([0], 6e4, torch.float16)).fit()
    t = trainer(Data([0], 6e4, torch.float16))
    t.activation_scaler.scaling_factor = 3.
    with pytest.raises(NonFiniteError, match='overflow torch.float16'):
        t.fit()


def test_the_estimate_of_the_norm(tmp_path):
    make = partial(trainer, Data([2]), sae=dict(normalize_activations='expected_average_only_in'), n_batches_for_norm_estimate=4)
    with pytest.raises(NonFiniteError, match='the estimate of the norm, batch 2: 1 of 32'):
        make(folder=tmp_path).fit()
    assert written(tmp_path)
    good, skipped = (trainer(Data(b), on_nonfinite='skip', n_batches_for_norm_estimate=n, sae=dict(normalize_activations='expected_average_only_in'))
                     for b, n in (([], 5), ([2], 4)))
    for t in (good, skipped):
        t.fit()
    assert skipped.data_provider.n == good.data_provider.n and skipped.skips.total == 1 and skipped.norm.batches == 4


def test_too_many_in_a_row(tmp_path):
    t = trainer(Data(range(3, 100)), folder=tmp_path, on_nonfinite='skip', steps=100)
    with pytest.raises(NonFiniteError, match='step 13 .*; 10 before it were skipped'):
        t.fit()
    assert t.skips.total == 11 and written(tmp_path)


@pytest.mark.parametrize('architecture', OPTIONS)
def test_resume_with_skips_is_exact(architecture, tmp_path):
    bad = [0, 4, 7]
    whole = trainer(Data(bad), architecture, on_nonfinite='skip')
    whole.fit()
    for at in (1, 5, 8):
        first = trainer(Data(bad), architecture, on_nonfinite='skip')
        for _ in range(at):
            first.one_step()
        Checkpoints(tmp_path/f'{at}').save(first)
        t = trainer(Data(bad), architecture, on_nonfinite='skip')
        Checkpoints(tmp_path/f'{at}').load(t)
        t.fit()
        assert_same(everything(whole), everything(t))
        assert t.skips.state_dict() == whole.skips.state_dict() == dict(total=3, in_a_row=0, last=7)


BAD_TOKEN = VOCAB - 1


class Model(nn.Module):
    "A language model that gives NaN for one token"
    tokenizer = None
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(VOCAB, D_IN), nn.Identity(), nn.Linear(D_IN, VOCAB)
        for i, p in enumerate(self.parameters()):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(i))

    def forward(self, tokens):
        return self.out(self.layer(torch.where((tokens == BAD_TOKEN)[..., None], torch.nan, self.embed(tokens))))


def contexts(bad=None):
    "Sixty contexts; the bad token is in one of them"
    tokens = torch.randint(BAD_TOKEN, (60, 10), generator=torch.Generator().manual_seed(0))
    if bad is not None:
        tokens[bad, 3] = BAD_TOKEN
    return tokens


def runner(folder, bad=None, data=True, **kw):
    from datasets import Dataset
    cfg = LanguageModelSAERunnerConfig(
        sae=sae_config(kw.pop('architecture', 'topk'), normalize_activations=kw.pop('norm', 'none')), model_name='toy', hook_name='layer',
        context_size=10, training_tokens=STEPS*BATCH, train_batch_size_tokens=BATCH, store_batch_size_prompts=4, n_batches_in_buffer=16,
        n_eval_batches=1, logger=LoggingConfig(**LOGGER), verbose=False, prepend_bos=False, n_batches_for_norm_estimate=4,
        checkpoint_path=str(folder/'checkpoints'), output_path=str(folder/'sae'), n_checkpoints=3, **dict(lr=1e-2) | kw)
    return LanguageModelSAETrainingRunner(cfg, Dataset.from_list([dict(tokens=t) for t in contexts(bad).tolist()]) if data else None, Model())


@pytest.mark.parametrize('norm', ['none', 'expected_average_only_in'])
def test_a_model_that_gives_nan(norm, tmp_path):
    "In the buffer's first filling (or the estimate of the norm), and later on; the message names context and position"
    for bad in (1, 25):
        with pytest.raises(NonFiniteError, match='context 1 of the batch, position 3, token id 19'):
            runner(tmp_path/f'{bad}', bad, norm=norm).run()
        assert not (tmp_path/f'{bad}'/'sae'/'sae_weights.safetensors').exists()
        r = runner(tmp_path/f'{bad}s', bad, norm=norm, on_nonfinite='skip')
        r.run()
        assert r.trainer.skips.total and r.trainer.n_training_steps == STEPS
        log = read_log(tmp_path/f'{bad}s'/'sae'/'log.jsonl')
        assert [line['details/skipped_steps'] for line in log if 'details/skipped_steps' in line][-1] == r.trainer.skips.total
        assert not_finite(read_tensors(tmp_path/f'{bad}s'/'sae'/'sae_weights.safetensors')) == []
    assert written(tmp_path)


def test_a_cached_shard(tmp_path):
    source = SyntheticSource(12, D_IN, batch_size=BATCH)
    write_cache((next(source) for _ in range(STEPS)), tmp_path/'acts', max_rows=STEPS*BATCH, rows_per_shard=100, about=dict(hook_name='layer', context_size=10))
    shard = sorted((tmp_path/'acts').glob('*.safetensors'))[1]
    tensors = {k: v.clone() for k, v in read_tensors(shard).items()}
    tensors[ROWS][7, 2] = torch.nan
    write_tensors(shard, tensors | {SUMS: row_checksums(tensors[ROWS])}, unhashed=(ROWS,))   # written so, not damaged later
    cached = dict(data=False, use_cached_activations=True, cached_activations_path=str(tmp_path/'acts'))
    with pytest.raises(NonFiniteError, match='dimension 2'):
        runner(tmp_path/'stop', **cached).run()
    r = runner(tmp_path/'skip', on_nonfinite='skip', **cached)
    r.run()
    assert r.trainer.skips.total == 1
    assert written(tmp_path/'stop') and written(tmp_path/'skip')


def test_a_row_in_the_buffer(tmp_path):
    for mode in ('stop', 'skip'):
        buffer = MixingBuffer(TensorSource(torch.randn(1000, D_IN, generator=torch.Generator().manual_seed(0)), rows=50), 200, BATCH)
        next(buffer)
        buffer.pool.rows[buffer.pool.slots[buffer.pool.start + 40]] = torch.nan
        t = trainer(buffer, folder=tmp_path/mode, on_nonfinite=mode)
        if mode == 'stop':
            with pytest.raises(NonFiniteError, match='the data were read up to TensorSource: epoch 0, row 200'):
                t.fit()
        else:
            t.fit()
            assert t.skips.total == 1
        assert written(tmp_path/mode)


def test_layers_go_on_behind_a_bad_pass():
    def make(bad): return LayerSources(ModuleSource(Model(), ['embed', 'layer'], contexts(bad), batch_size=4))
    spoilt, good = make(5), make(None)
    for name in spoilt:
        assert torch.equal(next(spoilt[name]), next(good[name]))
    with pytest.raises(NonFiniteError, match="at 'layer', batch 2"):
        next(spoilt['layer'])
    for name in good:
        next(good[name])
    for name in (*good, *good):
        assert torch.equal(next(spoilt[name]), next(good[name]))


def test_stopped_then_resumed_with_skip(tmp_path):
    "on_nonfinite may differ from the checkpoint's: that is what somebody changes after a run has stopped"
    with pytest.raises(NonFiniteError):
        runner(tmp_path, 25).run()
    r = runner(tmp_path, 25, on_nonfinite='skip', resume='auto')
    r.run()
    assert r.trainer.n_training_steps == STEPS and written(tmp_path)
