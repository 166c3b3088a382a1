"""Where interventions act while a model writes: positions count from the start of each text, however it is called"""
import pytest, torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration
from sae_workbench.analysis.attach import attach, intervene
from tiny import D, VOCAB, gpt2, llama, make_sae

@pytest.fixture(params=[(llama, 'model.layers.0'), (gpt2, 'transformer.h.0.mlp')], ids=['llama', 'gpt2'])
def place(request):
    make, name = request.param
    return make(), name

def prompt(n, seed=0): return torch.randint(3, VOCAB, (1, n), generator=torch.Generator().manual_seed(seed))

def padded(*texts):
    n = max(t.shape[1] for t in texts)
    return torch.cat([nn.functional.pad(t, (n - t.shape[1], 0)) for t in texts])

def write(model, tokens, n=5, **options):
    "The logits of the new tokens, (new, batch, vocabulary), which are chosen greedily"
    out = model.generate(tokens, attention_mask=(tokens > 0).long(), max_new_tokens=n, do_sample=False,
                         output_logits=True, return_dict_in_generate=True, **options)
    return torch.stack(out.logits)

def steered(model, name, positions, tokens, **options):
    sae = make_sae()
    with attach(model, sae, name), intervene(sae, 3, 'steer', 30., positions=positions, cached=True):
        return write(model, tokens, **options)

def as_one_call(model, name, positions, tokens, n=5):
    "What `steered` should give: the whole text in one call for each new token, each call counted by itself"
    sae = make_sae()
    with attach(model, sae, name), intervene(sae, 3, 'steer', 30., positions=positions, cached=False):
        return write(model, tokens, n, use_cache=False)

def close(a, b): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

@pytest.mark.parametrize('positions', [slice(2, None), slice(1, 9, 3), slice(6, None)])
def test_several_calls_of_generate(place, positions):
    model, name = place
    sae, texts = make_sae(), [prompt(5), prompt(7, 1), prompt(1, 2), prompt(1, 3), prompt(5)]
    wanted = [as_one_call(model, name, positions, t) for t in texts]
    assert not torch.equal(wanted[0], write(model, texts[0]))
    with attach(model, sae, name), intervene(sae, 3, 'steer', 30., positions=positions, cached=True):
        for t, w in zip(texts, wanted): close(write(model, t), w)
        close(write(model, texts[0], n=1), wanted[0][:1])
        close(write(model, texts[1], n=1), wanted[1][:1])

def test_padding_does_not_count(place):
    model, name = place
    texts = [prompt(3), prompt(6, 1), prompt(1, 2)]
    together = steered(model, name, [0, 2, 7], padded(*texts))
    for i, t in enumerate(texts): close(together[:, i], steered(model, name, [0, 2, 7], t)[:, 0])

@pytest.mark.parametrize('options', [dict(cache_implementation='static'), dict(prefill_chunk_size=2)],
                         ids=['static', 'chunks'])
def test_kinds_of_caches(options):
    tokens = padded(prompt(3), prompt(6, 1))
    close(steered(llama(), 'model.layers.0', [0, 2, 7], tokens, **options),
          steered(llama(), 'model.layers.0', [0, 2, 7], tokens))

def test_assisted_writing():
    model, name, tokens = llama(), 'model.layers.0', prompt(4)
    wanted = steered(model, name, slice(6, None), tokens)
    close(steered(model, name, slice(6, None), tokens, assistant_model=llama(1)), wanted)

def test_a_mask_has_a_column_for_each_column():
    tokens, mask = padded(prompt(3), prompt(6, 1)), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 3], mask[1, 0] = True, True   # the first token of each text
    close(steered(llama(), 'model.layers.0', mask, tokens), steered(llama(), 'model.layers.0', 0, tokens))

def test_a_loop_of_ones_own():
    model, sae, tokens = llama(), make_sae(), prompt(6)
    with torch.no_grad(), attach(model, sae, 'model.layers.0'):
        with intervene(sae, 3, 'steer', 30., positions=[1, 4], cached=True):
            for _ in range(2):
                first = model(tokens[:, :3])
                rest = model(tokens[:, 3:], past_key_values=first.past_key_values)
                close(torch.cat([first.logits, rest.logits], 1), model(tokens).logits)
            inner = model.model(tokens).last_hidden_state
        with intervene(sae, 3, 'steer', 30., positions=[1, 4]):
            close(model(tokens).logits, torch.cat([first.logits, rest.logits], 1))
            close(model.model(tokens).last_hidden_state, inner)

def test_encoder_and_decoder():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(d_model=D, d_ff=32, d_kv=8, num_heads=2, num_layers=2, vocab_size=VOCAB,
                                                decoder_start_token_id=0, pad_token_id=0, eos_token_id=None)).eval()
    tokens, part = padded(prompt(3), prompt(6, 1)), slice(2, 3)
    reads, writes = 'encoder.block.0', 'decoder.block.0'
    for name in (reads, writes): assert not torch.equal(steered(model, name, part, tokens), write(model, tokens))
    close(steered(model, reads, part, tokens)[:, 0], steered(model, reads, part, prompt(3))[:, 0])
    close(steered(model, writes, part, tokens), as_one_call(model, writes, part, tokens))
