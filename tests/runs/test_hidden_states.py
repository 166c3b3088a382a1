"""Hidden states that transformers collects, beside an SAE in the model: they show what the model went on with"""
from functools import partial
import pytest, torch
from sae_workbench.analysis.attach import attach
from sae_workbench.core.capture import capture, replacing
from tiny import gpt2, llama, make_sae

IDS = torch.arange(3, 15).view(2, 6)

def states(model): return model(IDS, output_hidden_states=True, output_attentions=True)

@pytest.fixture(params=[(llama, 'model.layers'), (gpt2, 'transformer.h')], ids=['llama', 'gpt2'])
def place(request):
    make, layers = request.param
    return partial(make, layers=3, attn_implementation='eager'), layers   # eager attention can be shown

@pytest.mark.parametrize('asked', ['never', 'before', 'between'])
@torch.no_grad()
def test_blocks_inside_each_other(place, asked):
    make, layers = place
    model, one, two = make(), make_sae(1), make_sae(2)
    clean = capture(model, f'{layers}.0', IDS)[f'{layers}.0']
    if asked == 'before': states(model)
    for _ in range(2):   # the second time the recorders hang there in any case
        with attach(model, one, f'{layers}.0'):
            if asked == 'between': torch.testing.assert_close(states(model).hidden_states[1], one(clean))
            with attach(model, two, f'{layers}.0'):
                out = states(model)
                torch.testing.assert_close(out.hidden_states[1], two(one(clean)))
                torch.testing.assert_close(out.logits, model(IDS).logits)
            torch.testing.assert_close(states(model).hidden_states[1], one(clean))
        torch.testing.assert_close(states(model).hidden_states[1], clean)

@torch.no_grad()
def test_attentions_and_later_layers_follow(place):
    make, layers = place
    fresh, asked, sae = make(), make(), make_sae(1)
    before = states(asked)
    found = []
    for model in (fresh, asked):
        with attach(model, sae, f'{layers}.0'), replacing(model, {f'{layers}.1': lambda h: 2*h}):
            found.append(states(model))
    for key in ('hidden_states', 'attentions'):
        for a, b in zip(found[0][key], found[1][key], strict=True): torch.testing.assert_close(a, b)
    assert not torch.equal(found[1].attentions[1], before.attentions[1])
    torch.testing.assert_close(found[1].attentions[0], before.attentions[0])

@torch.no_grad()
def test_hooks_of_others_keep_their_order(place):
    make, layers = place
    model, sae, seen, layer = make(), make_sae(1), [], f'{layers}.0'
    states(model)
    handle = model.get_submodule(layer).register_forward_hook(
        lambda m, i, out: seen.append(out[0] if isinstance(out, tuple) else out) and None)
    clean = capture(model, layer, IDS)[layer]
    seen.clear()
    with attach(model, sae, layer): states(model)
    handle.remove()
    torch.testing.assert_close(seen[0], clean)   # it hung there before the SAE
