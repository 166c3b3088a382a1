"""Crosscoders from the data to the saved folder: every kind, scaled by view, resumed to the bit, and what they say about planted differences"""
import re
import warnings

import pytest
import sae_workbench as sw
import torch
import torch.nn.functional as F
from sae_workbench import SAE, ConfigError, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, MixingBuffer, ModuleSource, PairedSource
from sae_workbench import SAETrainer, SAETrainerConfig, SAEWorkbenchError, ShardSource, TensorSource, TokenContexts, load_checkpoint, run_evals
from sae_workbench import save_checkpoint, write_cache
from sae_workbench.activations.shared_passes import SharedPasses
from sae_workbench.activations.side_by_side import SideBySide
from sae_workbench.core.processes import SingleProcess
from sae_workbench.saes.training import TrainStepInput, assert_same_step
from sae_workbench.training.preempt import Interrupted
from support.resumed import goes_on_to_the_bit
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
    whole = goes_on_to_the_bit(lambda: trainer(crosscoder(kind, normalize_activations=normalize)), (1, 3, 4, 11), tmp_path)   # in the estimate of the norms, before and after the first step, in training
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


class LM(nn.Module):
    "A language model of two layers, of different width"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.low, self.high, self.out = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(24, 40)

    def forward(self, tokens): return self.out(self.high(F.gelu(self.low(self.embed(tokens)))))


def run(folder, **options):
    return LanguageModelSAERunnerConfig(**dict(
        sae=config('BatchTopK'), model_name='toy', hook_name='low', hook_name_out='high', dataset_path='none', context_size=12, lr=3e-3,
        training_tokens=40*BATCH, train_batch_size_tokens=BATCH, store_batch_size_prompts=4, prepend_bos=False, verbose=False,
        exclude_special_tokens=False, output_path=str(folder/'out'), checkpoint_path=str(folder/'checkpoints')) | options)


def texts(): return [{'tokens': t} for t in torch.randint(0, 40, (60, 12), generator=torch.Generator().manual_seed(5)).tolist()]


@pytest.mark.filterwarnings('ignore:the dataset')
def test_the_runner_trains_one_of_two_layers_and_resumes(tmp_path):
    whole = LanguageModelSAETrainingRunner(run(tmp_path/'whole'), texts(), LM()).run()
    loaded = SAE.load_from_disk(tmp_path/'whole'/'out')
    assert type(loaded) is sw.Crosscoder and (loaded.cfg.d_views, loaded.cfg.metadata.hook_name, loaded.cfg.metadata.hook_name_out) == (VIEWS, 'low', 'high')

    class Stops(sw.Callback):
        def after_step(self, trainer):
            if trainer.n_training_steps == 17: trainer.stop('a test')
    with pytest.raises(Interrupted): LanguageModelSAETrainingRunner(run(tmp_path/'cut', resume='auto', n_checkpoints=2), texts(), LM(), callbacks=[Stops()]).run()
    again = LanguageModelSAETrainingRunner(run(tmp_path/'cut', resume='auto', n_checkpoints=2), texts(), LM()).run()
    for k, t in weights(whole).items(): assert torch.equal(t, weights(again)[k]), k
    with pytest.raises(ConfigError, match='set hook_name_out to its other views'):
        LanguageModelSAETrainingRunner(run(tmp_path/'one', hook_name_out=None), texts(), LM())


class Two(SingleProcess):
    "A process that believes it is two, and runs all passes itself"
    size = 2
    def objects(self, obj): return [obj]*2
    def gather(self, x): return [x]*2


def two_models(team=None):
    "What two models say about the same tokens, through a buffer"
    source = PairedSource(dict(base=LM(), tuned=LM()), dict(base='low', tuned='high'), TokenContexts(texts(), context_size=12, prepend_bos=False), 4,
                          seqpos_slice=(1, None))
    return MixingBuffer(source if team is None else SharedPasses(source, team), 256, BATCH)


@pytest.mark.filterwarnings('ignore:the dataset')
@pytest.mark.parametrize('team', [None, Two()])
def test_of_two_models_resumed_to_the_bit(team, tmp_path):
    whole = trainer(crosscoder(), two_models(team)).fit()
    first = trainer(crosscoder(), two_models(team))
    for _, _ in zip(range(9), first.steps()): pass
    save_checkpoint(tmp_path/'at', first, first.data_provider)
    second = trainer(crosscoder(), two_models(team))
    load_checkpoint(tmp_path/'at', second, second.data_provider)
    for k, t in weights(second.fit()).items(): assert torch.equal(t, weights(whole)[k]), k
    report = sw.compare_views(whole.to_inference(), two_models(), n_batches=4)
    assert report.n_rows == 4*BATCH and report.cosine is None   # of different width


def test_the_scaler_of_a_run_scales_whole_rows():
    "What an evaluator gets, while the scale is not in the weights yet"
    t = trainer(crosscoder())
    for step, _ in zip(range(8), t.steps()): pass
    x = torch.cat(views(64, 1), 1)
    rows = t.activation_scaler.scale(x)
    assert torch.equal(rows, t.state.scaling(x))
    torch.testing.assert_close(t.activation_scaler.unscale(rows), x)
    metrics, _ = run_evals(t.sae, TensorSource(views(500, 1), 250, epochs=1), activation_scaler=t.activation_scaler)
    assert metrics['shrinkage']['l2_norm_in'] == pytest.approx(torch.cat(views(500, 1), 1).norm(dim=1).mean().item(), rel=.2)


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


# What it says about two models whose differences are known
D, KINDS_OF_FEATURE = 32, dict(shared=60, first=12, second=12, rotated=12, faint=12)   # faint: in the first view at 0.3 of the strength


def planted():
    """Directions of features in two views, and the number of each one's kind.

    The world, and the options of both runs, were chosen so that the artefact is seen within seconds: faint features provoke it. In a larger world
    (d=64, 420 features, none of them faint) neither kind was trained long enough here to tell them apart.
    """
    g, n = torch.Generator().manual_seed(0), sum(KINDS_OF_FEATURE.values())
    kind = torch.repeat_interleave(torch.arange(5), torch.tensor([*KINDS_OF_FEATURE.values()]))
    first = F.normalize(torch.randn(n, D, generator=g), dim=1)
    second = first.clone()
    second[kind == 3] = F.normalize(torch.randn(KINDS_OF_FEATURE['rotated'], D, generator=g), dim=1)
    second[kind == 1], first[kind == 2] = 0, 0
    first[kind == 4] *= .3
    return first, second, kind


def planted_rows(n, seed):
    "Two features in a row, and noise of 5 %"
    g, (first, second, kind) = torch.Generator().manual_seed(seed), planted()
    code = (torch.rand(n, len(kind), generator=g) < 2/len(kind))*(torch.rand(n, len(kind), generator=g) + .5)
    return [x + .05*x.norm(dim=1).mean()/D**.5*torch.randn(n, D, generator=g) for x in (code @ first, code @ second)]


def diff(kind, rows, **options):
    "A trained crosscoder's report, and the feature that each latent resembles most"
    x, (first, second, _) = planted_rows(40_000, 1), planted()
    data = TensorSource(x, 256, shuffle=True)
    cc = trainer(crosscoder(kind, d_in=[D, D], d_sae=192, **options), data)
    cc = SAETrainer(SAETrainerConfig(rows, 256, lr=3e-3, lr_decay_steps=rows//768), cc.sae, data).fit().to_inference()
    likeness = F.normalize(cc.W_dec.detach(), dim=1) @ F.normalize(torch.cat([first, second], 1), dim=1).T
    return sw.compare_views(cc, planted_rows(8000, 9)), likeness.argmax(1)


def found(latents, feature, kind):
    "Precision and recall of latents that should be of one kind"
    of_kind = planted()[2][feature[latents]] == kind
    return of_kind.float().mean().item(), len(feature[latents][of_kind].unique())/12


def test_exclusive_latents_are_exclusive_with_batchtopk_and_an_artefact_with_l1():
    report, feature = diff('BatchTopK', 600_000, k=2.5)
    for view, kind in ((0, 1), (1, 2)):
        precision, recall = found(report.exclusive(view), feature, kind)
        assert precision >= .95 and recall >= .9, (view, precision, recall)
    penalised, its = diff('Standard', 400_000, l1_coefficient=3.)   # with a sum of norms, at an L0 that is no smaller
    assert report.l0 <= penalised.l0 < 2*report.l0
    only = penalised.exclusive(1)
    precision, _ = found(only, its, 2)
    assert precision < .7   # faint features have lost their decoder in the first view
    false = only[planted()[2][its[only]] != 2]
    assert (planted()[2][its[false]] == 4).all() and penalised.nu_error[false].median() > .2   # which latent scaling tells
    cleared, _ = found(penalised.specific(), its, 2)
    assert cleared > precision + .2


def test_the_same_model_twice_has_nothing_of_its_own():
    x = views(4000)[0]
    cc = trainer(crosscoder(d_in=[16, 16]), TensorSource([x, x], BATCH, shuffle=True), steps=400).fit().to_inference()
    report = sw.compare_views(cc, [x, x])
    share = report.share[report.density > 0]
    assert len(share) > 20 and share.min() > .45 and share.max() < .55
    assert not len(report.exclusive(0)) and not len(report.exclusive(1))


def test_unrelated_activations_are_told_apart():
    "In place of a model of random weights: other rows, turned at random"
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(1)))[0]
    x, other = planted_rows(20_000, 1)[0], planted_rows(20_000, 2)[0] @ turn
    data = TensorSource([x, other], 256, shuffle=True)
    cc = SAETrainer(SAETrainerConfig(300_000, 256, lr=3e-3), crosscoder(d_in=[D, D], d_sae=192, k=4), data).fit().to_inference()
    report = sw.compare_views(cc, [x, other])
    alive = int((report.density > 0).sum())
    assert alive > 100 and len(report.exclusive(0)) + len(report.exclusive(1)) > alive/2   # twice the same model: none
    assert len(report.specific()) == len(report.exclusive(1))


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
