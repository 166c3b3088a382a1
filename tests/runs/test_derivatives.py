"""Derivatives of any kind, batches of any shape, and what a step hands out, for every registered architecture"""
import pytest
import torch
from torch.autograd.functional import hvp, jacobian
from torch.testing import assert_close
import sae_workbench.saes  # registers the architectures
from sae_workbench.core.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_workbench.saes.training import TrainStepInput

OPTIONS = dict(topk=dict(k=3), abstopk=dict(k=3), batchtopk=dict(k=2.5),
               matryoshka_batchtopk=dict(k=2.5, matryoshka_widths=[8]),
               matching_pursuit=dict(max_iterations=3), temporal=dict(n_heads=2, bottleneck_factor=4, kval_topk=3),
               topk_transcoder=dict(k=3), topk_skip_transcoder=dict(k=3), batchtopk_transcoder=dict(k=2.5),
               matryoshka_batchtopk_transcoder=dict(k=2.5, matryoshka_widths=[8]), cross_layer_transcoder=dict(activation='topk', k=3))
TWO_LAYERS = dict(d_in=4, d_out=3, n_layers=2)   # of which a row has both, so that the whole is as wide as the others
PARTS = dict(d_views=[3, 5])   # a crosscoder's views
OPTIONS |= {f'{name}crosscoder': OPTIONS.get(name.rstrip('_'), {}) | PARTS for name in ('', 'jumprelu_', 'topk_', 'batchtopk_', 'matryoshka_batchtopk_')}
REGISTRIES = dict(inference=SAE_CLASS_REGISTRY, training=SAE_TRAINING_CLASS_REGISTRY)
OURS = [(kind, name) for kind, registry in REGISTRIES.items() for name, (cls, _) in registry.items()
        if cls.__module__.startswith('sae_workbench.')]
TRAINED = [name for kind, name in OURS if kind == 'training']


def sizes(name):
    "Widths with which it takes rows of 8"
    return dict(d_in=8, d_sae=16) | (TWO_LAYERS if name == 'cross_layer_transcoder' else dict(d_out=6) if 'transcoder' in name else {})


def decoder(sae):
    "A decoder's name"
    return next(n for n, _ in sae.named_parameters() if n.endswith('W_dec'))


def make(kind, name, **options):
    "A small SAE in double precision, with no weight at zero"
    torch.manual_seed(0)
    cls, cfg = REGISTRIES[kind][name]
    sae = cls(cfg(**sizes(name), dtype='float64', **OPTIONS.get(name, {}), **options))
    for p in sae.parameters(): p.data.add_(torch.randn_like(p), alpha=.3)
    return sae


def row(sae): return torch.randn(*((1, 3) if sae.cfg.architecture() == 'temporal' else ()), 8, dtype=torch.double)


def code(sae, x): return sae.encode(x).detach()


def ways(sae, x): return dict(encode=(sae.encode, x), decode=(sae.decode, code(sae, x)), forward=(sae, x))


def difference(f, x, v, eps=1e-6): return (f(x + eps*v) - f(x - eps*v)) / (2*eps)


@pytest.mark.parametrize('kind,name', OURS)
def test_second_derivatives(kind, name):
    sae = make(kind, name)
    for way, (f, x) in ways(sae, row(sae)).items():
        v = torch.randn_like(x)
        def loss(x): return f(x).pow(3).sum()
        def grad(x): return torch.autograd.grad(loss(x.requires_grad_()), x)[0]
        want = difference(grad, x.detach(), v)
        assert want.abs().max() > 0
        assert_close(hvp(loss, x, v)[1], want, rtol=1e-5, atol=1e-5, msg=lambda m: f'{way}: {m}')
        assert_close(torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind,name', OURS)
def test_derivatives_by_input_and_weights(kind, name):
    sae = make(kind, name)
    def f(x, W_dec): return torch.func.functional_call(sae, {decoder(sae): W_dec}, x)
    args = row(sae).requires_grad_(), sae.get_parameter(decoder(sae)).detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(f, args, atol=1e-4)


@pytest.mark.parametrize('error_term', [False, True])
@pytest.mark.parametrize('kind,name', OURS)
def test_jacobians(kind, name, error_term):
    sae = make(kind, name)
    sae.use_error_term = error_term and 'transcoder' not in name
    x = row(sae)
    def plain(x): return sae.reconstruct(x)   # what the error term adds is a constant
    columns = [difference(plain, x, e.reshape(x.shape)) for e in torch.eye(x.numel(), dtype=x.dtype)]
    want = torch.stack(columns, -1).reshape(*columns[0].shape, *x.shape).detach()
    made = dict(jacrev=torch.func.jacrev(sae)(x), jacfwd=torch.func.jacfwd(sae)(x), jacobian=jacobian(sae, x),
                vectorised=jacobian(sae, x, vectorize=True))
    with torch.no_grad(): made['jacfwd without grad'] = torch.func.jacfwd(sae)(x)
    for way, found in made.items():
        assert_close(found.detach(), want, rtol=1e-5, atol=1e-6, msg=lambda m: f'{way}: {m}')


@pytest.mark.parametrize('kind,name', OURS)
def test_vmap(kind, name):
    sae = make(kind, name)
    x = torch.stack([row(sae) for _ in range(4)])
    for way in ('encode', 'forward'):
        f = getattr(sae, way)
        want = torch.stack([f(one) for one in x])
        assert_close(torch.vmap(f)(x), want)
        with torch.no_grad(): assert_close(torch.vmap(f)(x), want.detach())
    f = torch.stack([code(sae, one) for one in x])
    assert_close(torch.vmap(sae.decode)(f), sae.decode(f))


@pytest.mark.parametrize('grad', [True, False])
@pytest.mark.parametrize('kind,name', OURS)
def test_shapes(kind, name, grad):
    sae = make(kind, name)
    width = sae(row(sae)).shape[-1]
    shapes = [(0, 3), (2, 3)] if name == 'temporal' else [(0,), (2, 0, 3), (), (1,), (2, 3), (2, 1, 2, 3)]
    for shape in shapes:
        x = torch.randn(*shape, 8, dtype=torch.double)
        with torch.set_grad_enabled(grad): f, out = sae.encode(x), sae(x)
        with torch.set_grad_enabled(grad): again = sae.decode(f)
        assert (f.shape, out.shape, again.shape) == ((*shape, 16), (*shape, width), (*shape, width))
        if 'batchtopk' in name or name == 'temporal': continue   # there rows and positions depend on each other
        rows = x.reshape(-1, 8)
        assert_close(f.reshape(-1, 16), torch.stack([sae.encode(r) for r in rows]) if len(rows) else f.reshape(0, 16))
        want = torch.stack([sae(r) for r in rows]) if len(rows) else out.reshape(0, width)
        assert_close(out.reshape(-1, width), want)


def few_fire(sae):
    "Let so few latents fire that the step is sparse"
    wide = 1.9 if hasattr(sae.cfg, 'd_out') else 1.   # a transcoder's encoder begins with longer columns
    if getattr(sae, 'threshold', None) is not None: sae.threshold.data.fill_(2.2*wide); sae.b_enc.data.zero_()
    elif hasattr(sae, 'b_gate'): sae.b_gate.data.fill_(-2.5)
    elif sae.cfg.architecture() in ('standard', 'transcoder', 'crosscoder'): sae.b_enc.data.fill_(-2.5*wide)


def step_input(sae, x, dead=None):
    coefficients = {k: .3 for k in sae.get_coefficients()}
    target = torch.linspace(-1, 1, len(x)*sae.d_out, dtype=x.dtype).reshape(len(x), -1) if hasattr(sae.cfg, 'd_out') else None
    return TrainStepInput(x, coefficients, dead, 0, target=target)


def with_more(sae, step, more):
    "Gradients of the documented pattern: a term on what the step hands out is added to its loss"
    out = sae.training_forward_pass(step)
    out.loss = out.loss + more(out)
    return out, torch.autograd.grad(out.loss, list(sae.parameters()))


MORE = dict(hidden_pre=lambda out: out.hidden_pre.pow(2).mean(),
            feature_acts=lambda out: out.feature_acts.tanh().mean(),
            sae_out=lambda out: out.sae_out.abs().mean(), losses=lambda out: 2*out.losses['mse_loss'])


@pytest.mark.parametrize('dead', [False, True])
@pytest.mark.parametrize('what', MORE)
@pytest.mark.parametrize('name', TRAINED)
def test_a_term_on_what_a_step_hands_out(name, what, dead):
    sae = make('training', name)
    few_fire(sae)
    step = step_input(sae, torch.randn(30, 8, dtype=torch.double), torch.arange(16) < 5 if dead else None)
    out, found = with_more(sae, step, MORE[what])
    assert (out.active is not None) == (name != 'matching_pursuit')   # the step was sparse
    with sae.hooks([('hook_sae_acts_post', lambda f, hook: f)]): dense, want = with_more(sae, step, MORE[what])
    assert dense.active is None
    assert_close(out.loss, dense.loss)
    for (n, _), a, b in zip(sae.named_parameters(), found, want): assert_close(a, b, msg=lambda m: f'{n}: {m}')


@pytest.mark.parametrize('name', TRAINED)
def test_a_step_can_be_differentiated_twice(name):
    sae = make('training', name)
    few_fire(sae)
    x = torch.randn(6, 8, dtype=torch.double)
    class Loss(torch.nn.Module):
        def __init__(self): super().__init__(); self.sae = sae
        def forward(self, x): return self.sae.training_forward_pass(step_input(self.sae, x)).loss
    def loss(x, W_dec): return torch.func.functional_call(Loss(), {f'sae.{decoder(sae)}': W_dec}, x)
    args = x.requires_grad_(), sae.get_parameter(decoder(sae)).detach().clone().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, args, atol=1e-4)


@pytest.mark.parametrize('name', TRAINED)
def test_what_is_kept_of_a_step_keeps_no_graph(name):
    sae = make('training', name)
    few_fire(sae)
    for read_first in (False, True):
        x = torch.randn(6, 8, dtype=torch.double)
        out = sae.training_forward_pass(step_input(sae, x))
        before = out.hidden_pre.clone() if read_first else sae.encode_with_hidden_pre(x)[1]
        out.loss.backward()
        for p in sae.parameters(): p.data.add_(1.)
        out.detach()
        assert not any(t.requires_grad for t in (out.hidden_pre, out.feature_acts, out.sae_out, out.loss))
        assert_close(out.hidden_pre, before.detach())   # those of the step, whatever became of the weights
