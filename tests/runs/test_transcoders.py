"""Transcoders in training: equal to their SAEs where the target is the input, begun from the data, resumed to the bit, evaluated where they write."""
import json
import re
import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
import sae_workbench as sw
from sae_workbench import SAE, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig, ModuleSource, SAETrainer, SAETrainerConfig
from sae_workbench import ShardSource, TensorSource, run_evals, train_together, write_cache
from sae_workbench.activations.hooked import layer_of
from sae_workbench.core.errors import SAEWorkbenchError
from sae_workbench.saes.training import TrainStepInput, assert_same_step
from sae_workbench.training.preempt import Interrupted
from support.resumed import goes_on_to_the_bit

D_IN, D_OUT, D_SAE, BATCH = 16, 12, 256, 64
KINDS = {'Standard': {}, 'JumpReLU': {}, 'TopK': dict(k=4), 'BatchTopK': dict(k=4), 'MatryoshkaBatchTopK': dict(k=4, matryoshka_widths=[32, 128])}


def config(kind='TopK', **options):
    return getattr(sw, f'{kind}TrainingTranscoderConfig')(**dict(d_in=D_IN, d_out=D_OUT, d_sae=D_SAE) | KINDS[kind] | options)


def transcoder(kind='TopK', **options):
    torch.manual_seed(0)
    return getattr(sw, f'{kind}TrainingTranscoder')(config(kind, **options))


def layer(x):
    g = torch.Generator().manual_seed(3)
    return F.gelu(x @ torch.randn(D_IN, 64, generator=g)/4) @ torch.randn(64, D_OUT, generator=g)/8


def pairs(n=2048, seed=0):
    x = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + .3
    return x, layer(x)


def source(**options): return TensorSource(pairs()[0], BATCH, target=20*pairs()[1], shuffle=True, **options)


def trainer(sae, data=None, steps=24, **options):
    torch.manual_seed(1)
    return SAETrainer(SAETrainerConfig(steps*BATCH, BATCH, lr=3e-3, n_batches_for_norm_estimate=3, **options), sae, source() if data is None else data)


def weights(sae): return {k: v.detach().clone() for k, v in sae.state_dict().items()}


def unexplained(sae, x, y): return ((sae(x) - y).pow(2).sum()/(y - y.mean(0)).pow(2).sum()).item()


@pytest.mark.parametrize('kind, skip, normalize', [*product(KINDS, (False, True), ('none', 'expected_average_only_in', 'layer_norm'))])
def test_resumed_to_the_bit_and_saved_for_inference(kind, skip, normalize, tmp_path):
    make = dict(skip=skip, normalize_activations=normalize, init='lstsq_skip' if skip else 'active_subspace')
    whole = goes_on_to_the_bit(lambda: trainer(transcoder(kind, **make)), (1, 3, 4, 11), tmp_path)   # in the estimate of the norm, before and after the weights have begun, in training
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'the layout is')
        whole.sae.save_inference_model(tmp_path/'sae')
    loaded, (x, y) = SAE.load_from_disk(tmp_path/'sae'), pairs(64, 1)
    assert ('skip' in loaded.cfg.architecture()) == skip and loaded.cfg.metadata.training_architecture == config(kind).architecture()
    if 'Batch' not in kind: torch.testing.assert_close(loaded(x), whole.sae(x), rtol=1e-4, atol=1e-4)
    assert unexplained(loaded, x, 20*y) < 1


def test_the_two_scales_are_estimated_apart_and_folded_exactly():
    t = trainer(transcoder(skip=True, normalize_activations='expected_average_only_in'))
    steps = t.steps()
    for _ in range(8): next(steps)
    (read, written), (x, y) = t.state.scaling.factors, pairs(64, 1)
    assert read == pytest.approx(D_IN**.5/x.norm(dim=1).mean().item(), rel=.1) and written == pytest.approx(D_OUT**.5/(20*y).norm(dim=1).mean().item(), rel=.2)
    before, latents = t.sae(read*x)/written, t.sae.encode(read*x)
    t.state.scaling.fold(t.sae)
    torch.testing.assert_close(t.sae(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(t.sae.encode(x), latents/written, rtol=1e-5, atol=1e-5)   # in units of decoder norms, which shrink


# Acceptance
def test_a_relu_layer_is_its_own_transcoder():
    g = torch.Generator().manual_seed(0)
    W_in, W_out = torch.randn(16, 64, generator=g, dtype=torch.float64), torch.randn(64, 12, generator=g, dtype=torch.float64)
    t = sw.StandardTrainingTranscoder(config('Standard', d_sae=64, dtype='float64'))
    t.W_enc.data, t.W_dec.data = W_in.clone(), W_out.clone()
    x = torch.randn(512, 16, generator=g, dtype=torch.float64)
    assert unexplained(t, x, (x @ W_in).relu() @ W_out) < 1e-12


def test_a_linear_layer_needs_no_latents_and_training_keeps_it():
    g = torch.Generator().manual_seed(0)
    A, x = torch.randn(D_IN, D_OUT, generator=g, dtype=torch.float64), torch.randn(4096, D_IN, generator=g, dtype=torch.float64)
    y = x @ A + 2
    t = transcoder('Standard', skip=True, init='lstsq_skip', dtype='float64')
    t.start_from_rows([(x, y)])
    off = x @ t.W_skip.T + t.b_dec
    assert ((off - y).pow(2).sum()/(y - y.mean(0)).pow(2).sum()).item() < 1e-10
    with torch.no_grad(): t.b_enc.fill_(-100.)   # all latents off
    run = SAETrainer(SAETrainerConfig(64*BATCH, BATCH, lr=1e-3, dead_feature_window=10**6), t, TensorSource(x, BATCH, target=y))
    run.fit()
    assert unexplained(t, x, y) < 1e-6


@pytest.mark.parametrize('kind', KINDS)
def test_with_the_input_as_target_it_is_the_sae(kind):
    "The same loss and the same gradients, bit for bit, over several steps of Adam"
    t = transcoder(kind, d_out=D_IN)
    sae = getattr(sw, f'{kind}TrainingSAE')(getattr(sw, f'{kind}TrainingSAEConfig')(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False, **KINDS[kind]))
    sae.load_state_dict(t.state_dict())
    t.fresh = False
    x = pairs()[0]
    trained = [trainer(one, data).fit() for one, data in ((t, TensorSource(x, BATCH, target=x)), (sae, TensorSource(x, BATCH)))]
    for k, v in weights(trained[1]).items(): assert torch.equal(v, weights(trained[0])[k]), k


@pytest.mark.parametrize('kind, skip', [*product(KINDS, (False, True))])
def test_the_sparse_step_is_the_dense_one_in_float64(kind, skip):
    t = transcoder(kind, skip=skip, dtype='float64')
    x, y = (v.double() for v in pairs(96))
    t.start_from_rows([(x, y)])
    with torch.no_grad():
        for p in t.parameters(): p.add_(torch.randn_like(p)*.05)
        if kind == 'Standard': t.b_enc.fill_(-4.)
        if kind == 'JumpReLU': t.threshold.fill_(4.)
    step_input = TrainStepInput(x, dict.fromkeys(t.get_coefficients(), .3), torch.arange(D_SAE) % 5 == 0, 3, target=y, caller_settles=True)
    tolerance = 1e-7 if kind == 'JumpReLU' else 1e-9   # its threshold is kept in float32
    assert_same_step(t, step_input, rtol=tolerance, atol=tolerance)


def test_the_skip_is_not_transposed():
    t = transcoder('Standard', skip=True)
    x, _ = pairs(8)
    with torch.no_grad():
        t.W_dec.zero_()
        t.W_skip.copy_(torch.arange(D_OUT*D_IN).reshape(D_OUT, D_IN))
    torch.testing.assert_close(t(x), torch.einsum('oi,ni->no', t.W_skip, x))


# How it begins
def test_each_init_reaches_the_trainer(tmp_path):
    x, y = pairs()
    for init in ('kaiming', 'zero_decoder', 'active_subspace', 'lstsq_skip'):
        options = dict(rescale_acts_by_decoder_norm=False) if init == 'zero_decoder' else {}
        t = trainer(transcoder(init=init, skip=init == 'lstsq_skip', **options), TensorSource(x, BATCH, target=y))
        next(t.steps())
        assert not t.sae.fresh and t.n_training_steps == 1
        assert (t.sae.b_dec - y.mean(0)).norm() < .5*y.mean(0).norm() or init == 'lstsq_skip'


def test_weights_that_are_loaded_do_not_begin_again(tmp_path):
    t = transcoder()
    with torch.no_grad(): t.b_dec.fill_(7.)
    t.save_model(tmp_path)
    loaded = sw.TopKTrainingTranscoder.load_from_disk(tmp_path)
    assert not loaded.fresh and transcoder().fresh
    next(trainer(loaded).steps())
    assert (loaded.b_dec - 7).abs().max() < .1


class LM(nn.Module):
    "A language model of one layer"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.norm, self.out = nn.Embedding(40, D_IN), nn.LayerNorm(D_IN), nn.Linear(D_OUT, 40)
        self.mlp = nn.Sequential(nn.Linear(D_IN, 48), nn.GELU(), nn.Linear(48, D_OUT))

    def forward(self, tokens): return self.out(3*self.mlp(self.norm(self.embed(tokens))))


def texts(): return [{'tokens': t} for t in torch.randint(0, 40, (60, 12), generator=torch.Generator().manual_seed(5)).tolist()]


def run(folder, **options):
    sae = config(**dict(d_sae=64, normalize_activations='expected_average_only_in') | options.pop('sae', {}))
    return LanguageModelSAERunnerConfig(sae=sae, **dict(
        model_name='toy', hook_name='norm', hook_name_out='mlp', dataset_path='none', context_size=12, training_tokens=40*BATCH, lr=3e-3,
        train_batch_size_tokens=BATCH, store_batch_size_prompts=4, n_eval_batches=2, prepend_bos=False, verbose=False, exclude_special_tokens=False,
        output_path=str(folder/'out'), checkpoint_path=str(folder/'checkpoints'), logger=LoggingConfig(wandb_log_frequency=10, eval_every_n_wandb_logs=1)) | options)


pytestmark = pytest.mark.filterwarnings('ignore:the dataset', 'ignore:the layout')


def test_the_runner_trains_evaluates_and_resumes(tmp_path):
    whole = LanguageModelSAETrainingRunner(run(tmp_path/'whole'), texts(), LM())
    trained = whole.run()
    sae = SAE.load_from_disk(tmp_path/'whole'/'out')
    assert type(sae) is sw.TopKTranscoder and (sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out) == ('norm', 'mlp')
    log = [json.loads(line) for line in (tmp_path/'whole'/'out'/'log.jsonl').read_text(encoding='utf-8').splitlines()]
    evaluations = [line['eval/explained_variance'] for line in log if 'eval/explained_variance' in line]
    assert len(evaluations) == 5 and evaluations[-1] > evaluations[0]   # scaled and folded, the same measure
    beyond = [(line['eval/explained_variance'], line['eval/explained_variance_affine_map'], line['eval/explained_beyond_affine']) for line in log if 'eval/l0' in line]
    assert all(share == pytest.approx(1 - (1 - own)/(1 - floor), abs=1e-9) and 0 < floor < 1 for own, floor, share in beyond)
    metrics, _ = run_evals(sae, whole.eval_tokens(), LM(), eval_config=sw.get_eval_everything_config(baselines=False), exclude_special_tokens=False)
    assert metrics['reconstruction_quality']['explained_variance'] == pytest.approx(evaluations[-1], abs=.02)
    assert metrics['model_performance_preservation']['ce_loss_with_sae'] == pytest.approx(log[-1]['eval/ce_loss_with_sae'], abs=1e-4)

    class Stops(sw.Callback):
        def after_step(self, trainer):
            if trainer.n_training_steps == 17: trainer.stop('a test')
    options = dict(n_checkpoints=2, resume='auto')
    with pytest.raises(Interrupted): LanguageModelSAETrainingRunner(run(tmp_path/'cut', **options), texts(), LM(), callbacks=[Stops()]).run()
    again = LanguageModelSAETrainingRunner(run(tmp_path/'cut', **options), texts(), LM()).run()
    for k, t in weights(trained).items(): assert torch.equal(t, weights(again)[k]), k


def test_the_layer_itself_is_asked_where_the_run_knows_it(tmp_path):
    runner = LanguageModelSAETrainingRunner(run(tmp_path, sae=dict(init='mlp'), output_path=None, checkpoint_path=None), texts(), LM())
    x = torch.randn(5, D_IN)
    torch.testing.assert_close(layer_of(runner.activations_store)(x), runner.model.mlp(x).detach())
    runner.run()
    assert not runner.sae.fresh


def test_every_layer_from_the_same_passes():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(10, D_IN), nn.ReLU(), nn.Linear(D_IN, D_OUT), nn.ReLU(), nn.Linear(D_OUT, D_IN)).requires_grad_(False)
    x, pairs = torch.randn(640, 10), [('1', '2'), ('3', '4')]
    def alone(read, written): return ModuleSource(net, x, read, hook_name_out=written, batch_size=BATCH)
    def made(i): return transcoder(init='mlp', d_in=[D_IN, D_OUT][i], d_out=[D_OUT, D_IN][i], normalize_activations='expected_average_only_in')
    layers = sw.LayerSources(ModuleSource(net, [*'1234'], x, batch_size=BATCH), pairs=pairs)
    together = train_together([trainer(made(i), layers[pair[0]]) for i, pair in enumerate(pairs)])
    for i, pair in enumerate(pairs):
        for k, t in weights(trainer(made(i), alone(*pair)).fit()).items(): assert torch.equal(t, weights(together[i])[k]), (pair, k)


@pytest.mark.parametrize('kind', KINDS)
def test_from_live_rows_and_from_a_cache_the_same(kind, tmp_path):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(10, D_IN), nn.ReLU(), nn.Linear(D_IN, D_OUT)).requires_grad_(False)
    def live(): return ModuleSource(net, torch.randn(640, 10, generator=torch.Generator().manual_seed(0)), '0', hook_name_out='2', batch_size=BATCH)
    write_cache(live(), tmp_path, max_rows=640)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a, b = (trainer(transcoder(kind, skip=True, init='lstsq_skip'), data, steps=4).fit() for data in (live(), ShardSource(tmp_path, rows=BATCH, shuffle=False)))
    for k, t in weights(a).items(): assert torch.equal(t, weights(b)[k]), k


def test_on_rows_it_is_measured_beside_its_floors():
    x, y = pairs(3000)
    sae = trainer(transcoder(skip=True, init='lstsq_skip'), TensorSource(x, BATCH, target=y), steps=300).fit().to_inference()
    metrics, _ = run_evals(sae, TensorSource(torch.cat(pairs(1000, 1), 1), 250, epochs=1))
    floors = {name: b['reconstruction_quality'] for name, b in metrics.baselines.items()}
    found = metrics['reconstruction_quality']
    assert floors['affine_map']['explained_beyond_affine'] == 0 and abs(floors['shuffled_targets']['explained_variance']) < .2
    assert found['explained_beyond_affine'] == pytest.approx(1 - found['mse']/floors['affine_map']['mse'])
    assert found['explained_beyond_affine'] > .2 and metrics.baselines['affine_map']['sparsity']['l0'] == 0
    same, _ = run_evals(sae, TensorSource(pairs(1000, 1)[0], 250, epochs=1, target=pairs(1000, 1)[1]))
    assert same['reconstruction_quality'] == found


def test_the_words_of_the_manual():
    "As the guide has it: any module, five lines"
    net = nn.ModuleDict(dict(mlp=nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24))))
    net.forward = lambda x: net.mlp(x)
    inputs = torch.randn(1024, 16)
    src = ModuleSource(net, inputs, 'mlp.0', hook_name_out='mlp.2', batch_size=256, shuffle=True)
    tc = sw.TopKTrainingTranscoder(sw.TopKTrainingTranscoderConfig(d_in=32, d_out=24, d_sae=128, k=8, skip=True))
    SAETrainer(SAETrainerConfig(20_000, 256, lr=3e-3), tc, src).fit()
    assert tc(net.mlp[0](inputs)).shape == (1024, 24)


WRONG = {   # what somebody does, and what they are told
    'no d_out': (lambda at: sw.TopKTrainingTranscoderConfig(d_in=4, d_sae=8, k=2), 'd_out'),
    'init of a skip without one': (lambda at: config(init='lstsq_skip'), 'write skip=True'),
    'no norms to choose by': (lambda at: config(init='zero_decoder'), 'rescale_acts_by_decoder_norm=False'),
    'an unknown init': (lambda at: config(init='zero'), 'zero_decoder'),
    'whitening': (lambda at: config(normalize_activations='covariance_whitening'), 'scales each of them'),
    'b_dec from the input': (lambda at: config(apply_b_dec_to_input=True), 'write False'),
    'no layer to ask': (lambda at: trainer(transcoder(init='mlp')).fit(), "init='mlp' asks the layer"),
    'a layer that reads something else': (lambda at: LanguageModelSAETrainingRunner(run(at, hook_name='embed', sae=dict(init='mlp')), texts(), LM()).run(), 'reads something else'),
    'rows of one part': (lambda at: trainer(transcoder(), TensorSource(pairs()[0], BATCH)).fit(), 'a batch must be (rows, d_in=28)'),
    'no hook_name_out': (lambda at: LanguageModelSAETrainingRunner(run(at, hook_name_out=None), texts(), LM()), 'set hook_name_out to what it is to write')}


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_said(name, tmp_path):
    do, says = WRONG[name]
    with pytest.raises((SAEWorkbenchError, TypeError), match=re.escape(says)): do(tmp_path)
