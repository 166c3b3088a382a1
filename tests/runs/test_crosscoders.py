"""Crosscoders from the data to the saved folder: every kind, scaled by view, resumed to the bit, and what they say about planted differences"""
import re
import warnings

import pytest
import sae_workbench as sw
import torch
import torch.nn.functional as F
from sae_workbench import SAE, ModuleSource, SAETrainer, SAETrainerConfig, SAEWorkbenchError, ShardSource, TensorSource, load_checkpoint, run_evals
from sae_workbench import save_checkpoint, write_cache
from sae_workbench.activations.side_by_side import SideBySide
from sae_workbench.saes.training import TrainStepInput, assert_same_step
from torch import nn

VIEWS, D_SAE, BATCH = [16, 24], 64, 64
KINDS = {'Standard': dict(l1_coefficient=.05), 'JumpReLU': dict(l0_coefficient=.02), 'TopK': dict(k=4), 'BatchTopK': dict(k=4),
         'MatryoshkaBatchTopK': dict(k=4, matryoshka_widths=[16, D_SAE])}

pytestmark = pytest.mark.filterwarnings('ignore:the layout')


def config(kind, **options): return getattr(sw, f'{kind}TrainingCrosscoderConfig')(**dict(d_in=VIEWS, d_sae=D_SAE) | KINDS[kind] | options)


def crosscoder(kind='BatchTopK', **options):
    torch.manual_seed(0)
    return getattr(sw, f'{kind}TrainingCrosscoder')(config(kind, **options))


def views(n=2048, seed=0, widths=VIEWS):
    "Sparse features with a direction in each view; the second view is twenty times as large"
    g, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    code = (torch.rand(n, 40, generator=g) < .08)*(torch.rand(n, 40, generator=g) + .5)
    first, *more = (code @ F.normalize(torch.randn(40, w, generator=world), dim=1) for w in widths)
    return [first, *(20*x for x in more)]


def source(**options): return TensorSource(views(), BATCH, shuffle=True, **options)


def trainer(sae, data=None, steps=24, **options):
    torch.manual_seed(1)
    return SAETrainer(SAETrainerConfig(steps*BATCH, BATCH, lr=3e-3, **dict(n_batches_for_norm_estimate=3) | options), sae,
                      source() if data is None else data)


def weights(sae): return {k: v.detach().clone() for k, v in sae.state_dict().items()}


def unexplained(sae, x):
    "For each view, from totals"
    with torch.no_grad(): out = sae(x)
    return [((o - v).pow(2).sum()/(v - v.mean(0)).pow(2).sum()).item() for o, v in zip(out, x)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('normalize', ['none', 'expected_average_only_in', 'layer_norm'])
def test_resumed_to_the_bit_and_saved_for_inference(kind, normalize, tmp_path):
    whole = trainer(crosscoder(kind, normalize_activations=normalize))
    whole.fit()
    for cut in (1, 3, 4, 11):   # in the estimate of the norms, before and after the first step, in training
        first = trainer(crosscoder(kind, normalize_activations=normalize))
        steps = first.steps()
        for _ in range(cut): next(steps)
        save_checkpoint(tmp_path/str(cut), first, first.data_provider)
        second = trainer(crosscoder(kind, normalize_activations=normalize))
        load_checkpoint(tmp_path/str(cut), second, second.data_provider)
        second.fit()
        for k, t in weights(whole.sae).items(): assert torch.equal(t, weights(second.sae)[k]), (cut, k)
    whole.sae.save_inference_model(tmp_path/'sae')
    loaded, x = SAE.load_from_disk(tmp_path/'sae'), views(64, 1)
    assert isinstance(loaded, sw.TopKCrosscoder if kind == 'TopK' else sw.Crosscoder) and loaded.cfg.d_views == VIEWS
    if 'Batch' not in kind:
        for got, want in zip(loaded(x), whole.sae(x)): torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_that_has_ended_goes_on_for_longer(kind, tmp_path):
    "The scales of the views, and where they decide the order the decoder norms, are taken out of the weights again"
    first = trainer(crosscoder(kind))
    first.fit()
    x = torch.cat(views(64, 1), 1)
    save_checkpoint(tmp_path/'end', first, first.data_provider)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        second = trainer(crosscoder(kind), steps=40)
        load_checkpoint(tmp_path/'end', second, second.data_provider)
    with torch.no_grad():
        scaled = second.state.scaling(x)
        factors = torch.cat([torch.full((w,), f) for w, f in zip(VIEWS, second.state.scaling.factors)])
        want = first.sae.to_inference()(x)
        torch.testing.assert_close(second.sae.to_inference()(scaled)/factors, want, rtol=1e-3, atol=1e-3)
    if hasattr(second.sae.cfg, 'rescale_acts_by_decoder_norm'):
        assert second.sae.cfg.rescale_acts_by_decoder_norm and not first.sae.cfg.rescale_acts_by_decoder_norm
    second.fit()
    assert max(unexplained(second.sae.to_inference(), views(256, 1))) < 1


def test_each_view_has_a_scale_of_its_own_and_is_learned():
    t = trainer(crosscoder(), steps=300)
    steps = t.steps()
    for _ in range(8): next(steps)
    for f, x in zip(t.state.scaling.factors, views()): assert f == pytest.approx(x.shape[1]**.5/x.norm(dim=1).mean().item(), rel=.1)
    for _ in steps: pass
    assert max(unexplained(t.sae.to_inference(), views(500, 1))) < .3
    raw = trainer(crosscoder(normalize_activations='none'), steps=300).fit()
    small, large = unexplained(raw.to_inference(), views(500, 1))
    assert small > 2*large   # without it the larger view owns the dictionary


@pytest.mark.parametrize('kind', KINDS)
def test_the_sparse_step_is_the_dense_one_in_float64(kind):
    for code_norm in ('crosscoder', 'sae', 'mixed', 'decoupled', 'none') if kind == 'Standard' else (None,):
        cc = crosscoder(kind, dtype='float64', **{} if code_norm is None else dict(code_norm=code_norm))
        with torch.no_grad():
            for p in cc.parameters(): p.add_(torch.randn_like(p)*.02)
            if kind == 'Standard': cc.b_enc.fill_(-.4)
            if kind == 'JumpReLU': cc.threshold.fill_(.4)
        x = torch.randn(96, sum(VIEWS), dtype=torch.float64)
        tolerance = 1e-7 if kind == 'JumpReLU' else 1e-9   # its threshold is kept in float32
        assert_same_step(cc, TrainStepInput(x, dict.fromkeys(cc.get_coefficients(), .3), torch.arange(D_SAE) % 5 == 0, 3, caller_settles=True),
                         rtol=tolerance, atol=tolerance)


def layers():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 24)).requires_grad_(False)


@pytest.mark.parametrize('kind', KINDS)
def test_from_live_layers_and_from_a_cache_the_same(kind, tmp_path):
    def live():
        inputs = torch.randn(640, 10, generator=torch.Generator().manual_seed(0))
        return SideBySide(ModuleSource(layers(), ['0', '2'], inputs, batch_size=BATCH))
    write_cache(live(), tmp_path, max_rows=640)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        a, b = (trainer(crosscoder(kind), data, steps=4).fit() for data in (live(), ShardSource(tmp_path, rows=BATCH, shuffle=False)))
    for k, t in weights(a).items(): assert torch.equal(t, weights(b)[k]), k


def test_measured_on_rows():
    sae = trainer(crosscoder(), steps=200).fit().to_inference()
    metrics, _ = run_evals(sae, TensorSource(views(1000, 1), 250, epochs=1))
    assert metrics['reconstruction_quality']['explained_variance'] > .6 and 2 < metrics['sparsity']['l0'] < 6
    assert metrics.baselines['frozen_encoder']['reconstruction_quality']['explained_variance'] < metrics['reconstruction_quality']['explained_variance']


def test_the_words_of_the_manual(tmp_path):
    x_a, x_b = views()
    cc = sw.BatchTopKTrainingCrosscoder(sw.BatchTopKTrainingCrosscoderConfig(d_in=[16, 24], d_sae=128, k=8))
    SAETrainer(SAETrainerConfig(20_000, 256, lr=3e-3), cc, TensorSource([x_a, x_b])).fit().save_inference_model(tmp_path)
    out_a, out_b = SAE.load_from_disk(tmp_path)([x_a, x_b])
    assert (out_a.shape, out_b.shape) == (x_a.shape, x_b.shape)


WRONG = {   # what somebody does, and what they are told
    'rows of other views': (lambda: trainer(crosscoder(d_in=[24, 16])).fit(), 'takes rows of 2 parts in this order'),
    'a view too many': (lambda: trainer(crosscoder(d_in=[16, 24, 8])).fit(), "columns '0': 16, '1': 24, which do not fit widths of 16 and 24 and 8"),
    'views of other widths': (lambda: crosscoder()([torch.zeros(3, 16), torch.zeros(3, 16)]), 'has views of width 16, 24'),
    'views of other lengths': (lambda: crosscoder()([torch.zeros(3, 16), torch.zeros(2, 24)]), 'belong together one by one'),
    'other names': (lambda: crosscoder(d_in=dict(a=16, b=24))(dict(a=torch.zeros(3, 16), c=torch.zeros(3, 24))), "those of the crosscoder 'a', 'b'"),
    'an unknown norm': (lambda: config('Standard', code_norm='croscoder'), "did you mean 'crosscoder'"),
    'whitening': (lambda: config('TopK', normalize_activations='covariance_whitening'), 'scales each of them'),
    'b_dec from the input': (lambda: config('TopK', apply_b_dec_to_input=True), 'write False')}


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_said(name):
    do, says = WRONG[name]
    with pytest.raises(SAEWorkbenchError, match=re.escape(says)): do()
