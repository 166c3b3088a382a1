"""A training loop of one's own, as for SAELens v6, gives what the trainer gives"""
import pytest
import torch
from sae_workbench import SAE, NonFiniteError, SAETrainer, SAETrainerConfig
from sae_workbench.saes.training import TrainStepInput
from sae_workbench.training.optim import clip_and_step
from test_derivatives import OPTIONS, TRAINED, sizes
from sae_workbench.core.registry import SAE_TRAINING_CLASS_REGISTRY


def trainer(name, steps=30):
    "A trainer whose thresholds leave their range now and then"
    torch.manual_seed(0)
    cls, cfg = SAE_TRAINING_CLASS_REGISTRY[name]
    more = dict(normalize_activations='none') if 'crosscoder' in name else {}   # not scaled by hand
    sae = cls(cfg(**sizes(name), **OPTIONS.get(name, {}), **more))
    batches = [torch.randn(50, sum(sae.row_blocks)) for _ in range(steps)]
    return SAETrainer(SAETrainerConfig(steps*50, 50, lr=.05), sae, iter(batches)), batches


def own_loop(name):
    "The same run by hand: of the trainer only the optimiser, its schedule and the dead latents are used"
    t, batches = trainer(name)
    if t.sae.fresh: t.sae.start_from_rows([t.sae.split(batches[0])])
    for i, rows in enumerate(batches):
        x, target = t.sae.split(rows)
        out = t.sae.training_forward_pass(TrainStepInput(x, t.get_coefficients(), t.dead_neurons, i, target=target))
        out.loss.backward()
        clip_and_step(t.optimizer)
        t.optimizer.zero_grad()
        t.statistics.update(out.firing_counts(), len(x))
        t.lr_scheduler.step()
        for c in t.coefficient_schedulers.values(): c.step()
    return t.sae


@pytest.mark.parametrize('name', TRAINED)
def test_a_loop_of_ones_own_gives_what_the_trainer_gives(name, tmp_path):
    t, _ = trainer(name)
    t.fit()
    sae = own_loop(name)
    sae.save_inference_model(tmp_path)
    saved, want = SAE.load_from_disk(tmp_path).state_dict(), t.sae.to_inference().state_dict()
    for k, v in want.items(): assert torch.equal(saved[k], v), k
    for k, v in t.sae.state_dict().items(): assert torch.equal(sae.state_dict()[k], v), k


@pytest.mark.parametrize('name', [n for n in TRAINED if 'batchtopk' in n])
def test_a_step_that_fails_in_the_trainer_leaves_no_trace(name):
    t, batches = trainer(name)
    t.step(batches[0])
    before = {k: v.clone() for k, v in t.sae.state_dict().items()}
    t.sae.mse_loss_fn = lambda preds, target: preds*torch.inf   # refused behind the forward pass
    with pytest.raises(NonFiniteError): t.step(batches[1])
    assert all(torch.equal(before[k], v) for k, v in t.sae.state_dict().items())
    t.sae.to_inference()
