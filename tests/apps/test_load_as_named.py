"""Commands load SmolLM2 without a hub under both of its names, and in the way that was asked for"""
from argparse import Namespace

import pytest
from torch import nn
from sae_workbench import StandardSAE, StandardSAEConfig
from sae_workbench.activations import models
from sae_workbench.activations.example_data import MODEL
from sae_workbench.analysis import dashboard
from sae_workbench.apps import evals_command


@pytest.fixture
def asked(monkeypatch):
    "What the loader of a class is asked for"
    found = []
    monkeypatch.setattr(models, 'without_hub', lambda name: 'the folder' if name == 'smollm2' else name)
    for kind in models.LOADERS:
        monkeypatch.setitem(models.LOADERS, kind, lambda name, device, options, kind=kind: found.append((kind, name, options)) or nn.Identity())
    return found


@pytest.mark.parametrize('name', ['smollm2', MODEL])
def test_the_class_and_its_options_count(asked, name):
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8))
    args = Namespace(model=name, model_class='AutoModelForCausalLM', model_kwargs='{"dtype": "float32"}', device='cpu')
    kind, named, options = evals_command._model(sae, args)
    evals_command.load_as_named(kind, named, 'cpu', options)
    dashboard._model_for(sae, name, dict(dtype='float32'))
    assert asked == [('AutoModelForCausalLM', 'the folder', dict(dtype='float32')), ('TransformerBridge', 'the folder', dict(dtype='float32'))]


def test_other_names_stay(asked):
    models.load_as_named('AutoModelForCausalLM', 'gpt2')
    assert asked == [('AutoModelForCausalLM', 'gpt2', {})]
