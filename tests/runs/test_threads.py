"""One model and one SAE with several users at once: threads see what they should and nothing else"""
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import pytest, torch
from torch import nn
from sae_workbench.activations.hooked import evaluating
from sae_workbench.activations.models import model_d_in
from sae_workbench.activations.modules import ModuleSource
from sae_workbench.activations.sources import TokenActivations
from sae_workbench.analysis.attach import Attachment, attach, intervene
from sae_workbench.analysis.evals import get_eval_everything_config, run_evals
from sae_workbench.analysis.logits import logit_effects
from sae_workbench.core.capture import capture, replacing
from sae_workbench.saes.base import SAEMetadata
from sae_workbench.saes.standard import StandardSAE, StandardSAEConfig
from sae_workbench.saes.topk import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_workbench.saes.transcoder import Transcoder, TranscoderConfig
from sae_workbench.apps.monitor import RUNNING, TrainingMonitor
from sae_workbench.training.config import SAETrainerConfig
from sae_workbench.training.trainer import SAETrainer
import tiny
from tiny import D, VOCAB

HOOK = 'model.layers.0'
make_sae = partial(tiny.make_sae, metadata=SAEMetadata(hf_hook_name=HOOK))

@pytest.fixture(autouse=True)
def _quick_switches():
    "Threads take turns a thousand times as often"
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)

def llama(): return tiny.llama().requires_grad_(False)
def make_normed(): return StandardSAE(StandardSAEConfig(D, 32, normalize_activations='layer_norm'))

def tokens(n=4, seed=0): return torch.randint(3, VOCAB, (n, 8), generator=torch.Generator().manual_seed(seed))

def in_threads(fn, jobs, n=4):
    with ThreadPoolExecutor(n) as pool: return list(pool.map(fn, jobs))

def test_error_term_and_intervention_of_a_shared_sae():
    sae, xs = make_sae(), torch.randn(4, 6, D)
    sae.use_error_term = True
    with intervene(sae, 3, 'steer', 5.):
        wanted = [sae(x) for x in xs]
        def right(i): return sum(torch.equal(sae(xs[i % 4]), wanted[i % 4]) for _ in range(400))
        assert in_threads(right, range(8)) == [400]*8

@pytest.mark.parametrize('make', [make_sae, make_normed])
def test_options_of_a_call_stay_with_it(make):
    sae, x = make(), torch.randn(2, 6, D)
    made = [Attachment(sae, (HOOK, HOOK), use_error_term=e, keep=torch.rand(2, 6) > .5) for e in (False, True)*2]
    wanted = [a(x) for a in made]
    def right(i): return sum(torch.equal(made[i](x), wanted[i]) for _ in range(300))
    assert in_threads(right, range(4)) == [300]*4
    assert sae.use_error_term is False

def test_a_shared_attachment_of_a_transcoder():
    torch.manual_seed(0)
    sae, model = Transcoder(TranscoderConfig(d_in=4, d_out=4, d_sae=8)), nn.Sequential(nn.Identity(), nn.Linear(4, 4))
    xs = torch.randn(4, 5, 4)
    with torch.no_grad(), attach(model, sae, ('0', '1')):
        wanted = [model(x) for x in xs]
        def right(i): return sum(torch.equal(model(xs[i]), wanted[i]) for _ in range(300))
        assert in_threads(right, range(4)) == [300]*4

def test_threads_that_attach_for_themselves():
    model, ids = llama(), tokens()
    saes = [make_sae(i) for i in range(4)]
    def logits(i, e):
        with torch.no_grad(), attach(model, saes[i], use_error_term=e), intervene(saes[0], 1, 'steer', 9.*i):
            return model(ids).logits
    wanted = {(i, e): logits(i, e) for i in range(4) for e in (False, True)}
    def right(i): return sum(torch.equal(logits(i, e), wanted[i, e]) for e in (False, True)*10)
    assert in_threads(right, range(4)) == [20]*4

def test_an_attached_sae_acts_in_a_thread_that_generates():
    model, sae, ids = llama(), make_sae(), tokens()
    def write(): return model.generate(ids, max_new_tokens=4, do_sample=False)
    plain = write()
    with attach(model, sae), intervene(sae, 3, 'steer', 50.):
        here = write()
        with ThreadPoolExecutor(1) as pool: there = pool.submit(write).result()
    assert torch.equal(here, there) and not torch.equal(here, plain)

def test_measurements_at_once():
    model, ids = llama(), tokens(8)
    saes = [make_sae(i) for i in range(2)]
    cfg = get_eval_everything_config(batch_size_prompts=4, n_eval_reconstruction_batches=2, baselines=False)
    def measures(i):
        metrics, _ = run_evals(saes[i], ids, model, eval_config=cfg, exclude_special_tokens=False)
        acts = TokenActivations(model, HOOK).rows(ids)
        return (metrics.to_dict(), acts.sum().item(), logit_effects(model, saes[i].W_dec[:2]).sum().item(),
                capture(model, HOOK, ids[i:i + 1])[HOOK].sum().item(), model_d_in(model, HOOK),
                saes[i].run_with_cache(torch.ones(1, D)*i)[1]['hook_sae_input'].sum().item())
    wanted = [measures(i) for i in range(2)]
    def right(i): return [measures(i % 2) == wanted[i % 2] for _ in range(3)]
    assert in_threads(right, range(4)) == [[True]*3]*4
    with attach(model, saes[1]), intervene(saes[0], 3, 'steer', 50.), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: measures(0)[:3]).result() == wanted[0][:3]

def test_evaluation_mode_lasts_until_the_last_block():
    net = nn.Sequential(nn.Dropout(), nn.Linear(2, 2).eval())
    first, second = evaluating(net), evaluating(net)
    first.__enter__(); second.__enter__()
    first.__exit__(None, None, None)
    assert not any(m.training for m in net.modules())
    second.__exit__(None, None, None)
    assert [m.training for m in net.modules()] == [True, True, False]

def run_beside(model, cell):
    "A run in a monitor's thread while `cell` is called again and again; the run's weights, and what the cell found"
    source = ModuleSource(model, HOOK, tokens(64), batch_size=4)
    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=32, k=4))
    cfg = SAETrainerConfig(total_training_samples=32*100, train_batch_size_samples=32, device='cpu')
    monitor = TrainingMonitor(SAETrainer(cfg, sae, source)).start()
    found = []
    while monitor.state in RUNNING: found.append(cell(sae))
    monitor.wait()
    return torch.cat([p.detach().flatten() for p in sae.parameters()]), found

def test_a_run_beside_a_cell_with_the_same_model():
    model, other, ids = llama(), make_sae(), tokens()
    @torch.no_grad()
    def cell(in_training):
        with attach(model, other), intervene(other, 3, 'steer', 20.), intervene(in_training, 5, 'scale', 2.):
            changed, seen = model(ids).logits, capture(model, 'model.layers.1', ids)['model.layers.1']
            with replacing(model, {HOOK: torch.zeros_like}): zeros = model(ids).logits
        return torch.cat([t.flatten() for t in (changed, seen, zeros, model(ids).logits)])
    alone, _ = run_beside(model, lambda sae: None)
    wanted = cell(make_sae(1))
    beside, found = run_beside(model, cell)
    assert torch.equal(alone, beside)
    assert len(found) > 3 and all(torch.equal(f, wanted) for f in found)
