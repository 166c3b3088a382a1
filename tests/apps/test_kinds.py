"""Every kind of dictionary in the widgets: what is chosen, what a run of it takes, and its latents on texts"""
import pytest
import sae_workbench as sw
import torch
from sae_workbench.core.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from support.tiny import llama

OWN = [name for name, (cls, _) in SAE_TRAINING_CLASS_REGISTRY.items() if cls.__module__.startswith('sae_workbench.')]


@pytest.mark.parametrize('architecture', OWN)
def test_it_can_be_chosen(architecture):
    chooser = sw.choose_architecture(architecture=architecture)
    needed = dict(d_out=256, n_layers=2, matryoshka_widths=[1024, 4096])
    chooser.set(**{name: value for name, value in needed.items() if f'sae.{name}' in chooser.options})
    assert not chooser.mistakes and chooser.config.sae.architecture() == architecture
    assert chooser.estimate().working > 0 and architecture in chooser.static() and chooser.make_widget() is not None


def several(architecture: str, **options):
    "For inference, with random weights, on two places of a model"
    cls, cfg = get_sae_training_class(architecture)
    return cls(cfg(**options)).to_inference()


@pytest.mark.parametrize('architecture', ['batchtopk_crosscoder', 'cross_layer_transcoder'])
def test_latents_that_read_several_places(architecture):
    model, d = llama(), 16
    sae = several(architecture, **(dict(d_in=[d, d], d_sae=32, k=4) if 'cross_layer' not in architecture else dict(d_in=d, d_out=d, d_sae=32, k=4, n_layers=2)))
    sae.cfg.metadata.update(hook_name=['model.layers.0', 'model.layers.1'], hook_name_out=None if 'layer' not in architecture else ['model.layers.0.mlp', 'model.layers.1.mlp'])
    tokens = torch.randint(3, 30, (6, 12))
    rows = torch.cat([*sw.capture(model, ['model.layers.0', 'model.layers.1'], tokens).values()], -1)
    found = sw.latent_examples(sae, model, tokens, latents=[0, 5], n_examples=2)
    f = sae.encode(rows)
    for x in found:
        assert x.max_act == pytest.approx(f[..., x.latent].max().item(), rel=1e-5)
    assert sw.explore(sae, model, tokens) is not None and sw.explore(sae, data=rows.flatten(0, 1)) is not None
    for call in (sw.run_evals, lambda sae, tokens, model: sw.attach(model, sae).__enter__()):
        with pytest.raises(sw.ConfigError, match='reads at several places of the model: model.layers.0, model.layers.1'): call(sae, tokens, model)
    with pytest.raises(sw.ConfigError, match='16 wide'): sw.latent_examples(sae, model, tokens, hook_name='model.layers.0')
