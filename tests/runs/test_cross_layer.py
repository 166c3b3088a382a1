"""Cross-layer transcoders in training: from a model, resumed to the bit, scaled and folded, saved and loaded."""
import re
import warnings

import pytest
import torch
from torch import nn
import sae_workbench as sw
from sae_workbench import SAE, LanguageModelSource, SAETrainer, SAETrainerConfig, ShardSource, TensorSource, load_checkpoint
from sae_workbench import run_evals, save_checkpoint, write_cache
from sae_workbench.activations.tokens import TokenContexts
from sae_workbench.core.errors import SAEWorkbenchError
from sae_workbench.saes.training import TrainStepInput
from support.resumed import goes_on_to_the_bit

L, D_IN, D_OUT, BATCH = 3, 8, 6, 64
KINDS = {'topk': dict(k=6), 'batchtopk': dict(k=5.5), 'layertopk': dict(k=6), 'jumprelu': {}}
pytestmark = pytest.mark.filterwarnings('ignore:the layout')


def clt(kind='topk', **options):
    torch.manual_seed(0)
    make = dict(d_in=D_IN, d_out=D_OUT, d_sae=192, n_layers=L, activation=kind) | KINDS[kind] | options
    return sw.CrossLayerTrainingTranscoder(sw.CrossLayerTrainingTranscoderConfig(**make))


def parts(n=2048, seed=0):
    "What three layers read, and what they write: each a function of what is read there and before, late ones larger"
    g = torch.Generator().manual_seed(seed)
    x, W = torch.randn(n, L*D_IN, generator=g), torch.Generator().manual_seed(9)
    maps = [torch.randn(D_IN*(t + 1), D_OUT, generator=W)/4 for t in range(L)]
    return list(x.split(D_IN, 1)), [5.**t*(x[:, :D_IN*(t + 1)] @ m).relu() for t, m in enumerate(maps)]


def source(**more):
    x, y = parts()
    return TensorSource({f'read {i}': v for i, v in enumerate(x)} | {f'write {i}': v for i, v in enumerate(y)}, BATCH, shuffle=True, **more)


def trainer(sae, data=None, steps=24, **options):
    torch.manual_seed(1)
    return SAETrainer(SAETrainerConfig(steps*BATCH, BATCH, lr=3e-3, n_batches_for_norm_estimate=3, dead_feature_window=8, **options),
                      sae, source() if data is None else data)


def weights(sae): return {k: v.detach().clone() for k, v in sae.state_dict().items()}


def unexplained(sae, x, y): return ((sae(x) - y).pow(2).sum()/(y - y.mean(0)).pow(2).sum()).item()


@pytest.mark.parametrize('more', [{}, dict(skip=True, init='lstsq_skip', window=1), dict(normalize_activations='expected_average_only_in'),
                                  dict(normalize_activations='expected_average_only_in', initial_k=48, k_warm_up_steps=10)], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_resumed_to_the_bit_and_saved_for_inference(kind, more, tmp_path):
    if kind == 'jumprelu': more = {k: v for k, v in more.items() if '_k' not in k and 'k_' not in k}
    whole = goes_on_to_the_bit(lambda: trainer(clt(kind, **more)), (1, 4, 11, 24), tmp_path)   # in the estimate of the norm, before and after the weights have begun, in training
    whole.sae.save_inference_model(tmp_path/'clt')
    loaded, (x, y) = SAE.load_from_disk(tmp_path/'clt'), (torch.cat(v, 1) for v in parts(64, 1))
    assert type(loaded) is sw.CrossLayerTranscoder and loaded.cfg.metadata.training_architecture == 'cross_layer_transcoder'
    lazy = sw.load_lazily(tmp_path/'clt')
    torch.testing.assert_close(lazy(x), loaded(x), rtol=1e-4, atol=1e-4)
    if kind != 'batchtopk': torch.testing.assert_close(loaded(x), whole.sae(x), rtol=1e-3, atol=1e-3)
    assert not more or unexplained(loaded, x, y) < 1   # without scales, the last layer is far away after 24 steps


def test_a_finished_run_goes_on_in_the_units_of_training(tmp_path):
    "A run that has ended is loaded with more steps to do: the scales are taken out of the weights again, and what fires is the same"
    options = dict(normalize_activations='expected_average_only_in')
    ended = trainer(clt(**options), steps=12)
    ended.fit()
    x = torch.cat(parts(64, 1)[0], 1)
    scaled = ended.sae.encode(x)
    save_checkpoint(tmp_path/'ended', ended, ended.data_provider)
    again = trainer(clt(**options), steps=12)
    load_checkpoint(tmp_path/'ended', again, again.data_provider)
    torch.testing.assert_close(again.sae.encode(x), scaled)
    before = again.sae.latent_norms()
    again.state.scaling.unfold(again.sae, options)
    torch.testing.assert_close(again.sae.target_scales, torch.ones(L, dtype=torch.float64))
    torch.testing.assert_close(again.sae.latent_norms(), before)


def test_each_input_and_each_output_has_a_scale_of_its_own():
    t = trainer(clt(normalize_activations='expected_average_only_in'))
    steps = t.steps()
    for _ in range(8): next(steps)
    x, y = parts()
    widths = [D_IN]*L + [D_OUT]*L
    for factor, width, part in zip(t.state.scaling.factors, widths, x + y, strict=True):
        assert factor == pytest.approx(width**.5/part.norm(dim=1).mean().item(), rel=.2)


class LM(nn.Module):
    "A language model of three layers"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.out = nn.Embedding(40, D_IN), nn.Linear(D_IN, 40)
        self.norms = nn.ModuleList(nn.LayerNorm(D_IN) for _ in range(L))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(D_IN, 24), nn.GELU(), nn.Linear(24, D_IN)) for _ in range(L))

    def forward(self, tokens):
        h = self.embed(tokens)
        for norm, mlp in zip(self.norms, self.mlps): h = h + 3*mlp(norm(h))
        return self.out(h)


HOOKS = dict(hook_name=[f'norms.{i}' for i in range(L)], hook_name_out=[f'mlps.{i}' for i in range(L)])


def test_from_a_model_and_from_a_cache_the_same(tmp_path):
    texts = [{'tokens': t} for t in torch.randint(0, 40, (64, 12), generator=torch.Generator().manual_seed(5)).tolist()]
    def live(): return LanguageModelSource(LM(), HOOKS['hook_name'], TokenContexts(texts, context_size=12), 4, hook_name_out=HOOKS['hook_name_out'])
    write_cache(live(), tmp_path, max_rows=640)
    def made(): return clt(d_out=D_IN, skip=True, init='lstsq_skip', normalize_activations='expected_average_only_in')
    def loop(data):
        torch.manual_seed(1)
        return SAETrainer(SAETrainerConfig(6*48, 48, n_batches_for_norm_estimate=2), made(), data).fit()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a, b = loop(live()), loop(ShardSource(tmp_path, rows=48, shuffle=False))
    for k, t in weights(a).items(): assert torch.equal(t, weights(b)[k]), k


def test_the_log_knows_each_layer():
    seen = []
    class Reads(sw.Callback):
        def on_log(self, trainer, metrics): seen.append(dict(metrics))
    torch.manual_seed(1)
    t = SAETrainer(SAETrainerConfig(20*BATCH, BATCH, lr=3e-3, dead_feature_window=3, logger=sw.LoggingConfig(wandb_log_frequency=10)), clt(), source(), callbacks=[Reads()])
    t.fit()
    last = seen[-1]
    assert sum(last[f'metrics/l0_layer_{i}'] for i in range(L)) == pytest.approx(last['metrics/l0'])
    assert sum(last[f'metrics/dead_layer_{i}'] for i in range(L)) == pytest.approx(last['sparsity/dead_features'], abs=30) and last['metrics/k'] == 6   # before and after the step
    assert all(last[f'metrics/explained_variance_layer_{i}'] < 1 for i in range(L))


def test_on_rows_it_is_measured_beside_its_floors():
    sae = trainer(clt(), steps=60).fit().to_inference()
    x, y = parts(1500, 1)
    metrics, _ = run_evals(sae, TensorSource(torch.cat(x + y, 1), 250, epochs=1))
    assert metrics['reconstruction_quality']['explained_variance'] == pytest.approx(1 - unexplained(sae, torch.cat(x, 1)[-1000:], torch.cat(y, 1)[-1000:]), abs=.1)
    assert metrics['sparsity']['l0'] <= 6 and set(metrics.baselines) == {'affine_map', 'frozen_encoder', 'shuffled_targets'}


WRONG = {   # what somebody does, and what they are told
    'no n_layers': (lambda: sw.CrossLayerTrainingTranscoderConfig(d_in=4, d_out=4, d_sae=8, k=2), 'n_layers'),
    'layers that cannot share': (lambda: clt(d_sae=191), 'cannot share them equally'),
    'k that layers cannot share': (lambda: clt('layertopk', k=7), 'k=7.0 counts'),
    'half a latent': (lambda: clt(k=2.5), 'batchtopk takes a fraction'),
    'whitening': (lambda: clt(normalize_activations='covariance_whitening'), 'scales each of them'),
    'an unknown activation': (lambda: clt('topk', activation='relu'), 'activation'),
    'rows of two parts': (lambda: trainer(clt(), TensorSource(torch.cat(parts()[0], 1), BATCH, target=torch.cat(parts()[1], 1))).fit(), 'takes rows of 6 parts'),
    'rows of one part': (lambda: trainer(clt(), TensorSource(torch.randn(99, 5), BATCH)).fit(), 'd_in=42'),
    'a batch without a latent': (lambda: trainer(clt('batchtopk', k=.001)).fit(), 'less than one latent'),
    'a decoder that is not there': (lambda: clt().to_inference().decoder(2, 0), 'do not write to layer 0')}


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_said(name):
    do, says = WRONG[name]
    with pytest.raises((SAEWorkbenchError, TypeError), match=re.escape(says)): do()


# Derivatives
def step_of(sae, x, y): return sae.training_forward_pass(TrainStepInput(x, dict.fromkeys(sae.get_coefficients(), .3), torch.arange(sae.cfg.d_sae) % 5 == 0, 0, target=y, caller_settles=True))


@pytest.mark.parametrize('kind', KINDS)
def test_the_gradients_of_a_step_are_those_of_its_loss(kind):
    "By differences, in double precision, for every tensor; the sparse step is the one that runs"
    sae = clt(kind, d_in=3, d_out=2, d_sae=30, dtype='float64', skip=True, window=1)
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(4, 3*L, generator=g, dtype=torch.float64), torch.randn(4, 2*L, generator=g, dtype=torch.float64)
    with torch.no_grad():
        for p in sae.parameters(): p.add_(torch.randn(p.shape, generator=g), alpha=.2)
        if kind == 'jumprelu':   # no pre-activation in the band of a threshold, where the gradient is an estimate and not the loss's
            sae.threshold.fill_(.9)
            pre = sae.encode_with_hidden_pre(x)[1]
            gaps = (pre - sae.theta).abs().amin(0) <= sae.bandwidth
            sae.b_enc[gaps] -= 20
            sae.b_enc[torch.arange(30) % 3 > 0] -= 20   # few fire, so that the step is sparse
    names = [n for n, _ in sae.named_parameters() if n != 'threshold']

    def loss(*tensors):
        return torch.func.functional_call(Loss(sae), {f'sae.{n}': t for n, t in zip(names, tensors)}, (x, y))

    tensors = [sae.get_parameter(n).detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(loss, tensors, eps=1e-7, atol=1e-5)


class Loss(nn.Module):
    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, x, y): return step_of(self.sae, x, y).losses['mse_loss']


def test_the_threshold_learns_from_latents_just_below_it():
    "The estimate, written out: a latent in the band moves its threshold whether it fires or not"
    sae = clt('jumprelu', d_sae=192, dtype='float64', jumprelu_bandwidth=.2, l0_coefficient=.5)
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, L*D_IN, generator=g, dtype=torch.float64), torch.randn(40, L*D_OUT, generator=g, dtype=torch.float64)
    with torch.no_grad():
        sae.threshold.fill_(.5)
    out = sae.training_forward_pass(TrainStepInput(x, dict(l0=.5), None, 0, target=y, caller_settles=True))
    assert out.active is not None   # the sparse step
    out.loss.backward()
    with torch.no_grad():
        f, pre = sae.encode_with_hidden_pre(x)
        d_out = 2*(sae.write(x, f) - y)/len(x)
        near = ((pre - .5).abs() < .1).double()/.2
        want = -(near*(.5*(d_out @ sae.W_dec.T) + .5/len(x))).sum(0)
    assert (near.bool() & (pre < .5)).any()
    torch.testing.assert_close(sae.threshold.grad.double(), want, rtol=1e-5, atol=1e-6)
