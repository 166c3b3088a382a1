"""A cross-layer transcoder beside one transcoder per layer (window=0): the same code, latents, tokens and L0.

    python benchmarks/cross_layer.py [--lm-steps 1500] [--steps 600] [--k 8,16] [--windows none,1,0]

One thread, a few minutes. A GPT-2 of four layers (d=64, bytes) is trained on Python's documentation on the spot; then all its
MLPs are imitated at once, with 8 d latents per layer and BatchTopK. `FVU` is the share of the variance that is left, of all
layers and of each, on held-out contexts; `KL` and `agreement` are of the model with all MLPs replaced."""
import argparse, time, warnings
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from sae_workbench import CrossLayerTrainingTranscoder, CrossLayerTrainingTranscoderConfig, LanguageModelSource, SAEMetadata
from sae_workbench import SAETrainer, SAETrainerConfig, TensorSource, TokenContexts, faithfulness
from sae_workbench.activations.example_data import byte_tokenizer, offline_text

D, LAYERS, CONTEXT, BATCH = 64, 4, 64, 1024
READ, WRITE = [[f'transformer.h.{i}.{part}' for i in range(LAYERS)] for part in ('ln_2', 'mlp')]

def contexts(split, n):
    tokens = TokenContexts(offline_text(split), byte_tokenizer(), CONTEXT)
    return torch.stack([next(tokens) for _ in range(n)])

def language_model(steps):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, bos_token_id=256, eos_token_id=256, n_positions=CONTEXT, n_embd=D, n_layer=LAYERS, n_head=4,
                                       resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    data, optim = contexts('train', 6000), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for i in range(steps):
        for group in optim.param_groups: group['lr'] = 2e-3*min(1, i/100)*(1 - i/steps)
        batch = data[torch.randint(0, len(data), (32,))]
        loss = model(batch, labels=batch).loss
        optim.zero_grad(), loss.backward(), optim.step()
    model.config.use_cache = False
    return model.eval().requires_grad_(False), loss.item()

def rows(model, split, n):
    source = LanguageModelSource(model, READ, TokenContexts(offline_text(split), byte_tokenizer(), CONTEXT), 64, hook_name_out=WRITE)
    found = []
    while sum(map(len, found)) < n: found.append(next(source))
    return torch.cat(found)[:n]

def train(data, steps, k, window):
    torch.manual_seed(0)
    clt = CrossLayerTrainingTranscoder(CrossLayerTrainingTranscoderConfig(
        d_in=D, d_out=D, d_sae=8*D*LAYERS, n_layers=LAYERS, k=k, activation='batchtopk', window=window,
        normalize_activations='expected_average_only_in', metadata=SAEMetadata(hook_name=READ, hook_name_out=WRITE)))
    named = dict(zip(READ + [f'{w}.out' for w in WRITE], data.split(D, 1)))
    loop = SAETrainerConfig(steps*BATCH, BATCH, lr=2e-3, lr_decay_steps=steps//4, dead_feature_window=100)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return SAETrainer(loop, clt, TensorSource(named, BATCH, shuffle=True)).fit().to_inference()

@torch.no_grad()
def unexplained(clt, data):
    x, y = data.split(D*LAYERS, 1)
    miss, spread = (clt(x) - y).pow(2).sum(0), (y - y.mean(0)).pow(2).sum(0)
    each = miss.unflatten(0, (LAYERS, D)).sum(1)/spread.unflatten(0, (LAYERS, D)).sum(1)
    return each.mean().item(), each.tolist(), (clt.encode(x) != 0).sum(1).float().mean().item()

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--lm-steps', type=int, default=1500)
    ap.add_argument('--steps', type=int, default=600)
    ap.add_argument('--rows', type=int, default=100_000)
    ap.add_argument('--k', default='8,16')
    ap.add_argument('--windows', default='none,1,0')
    a = ap.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    model, loss = language_model(a.lm_steps)
    print(f'language model: loss {loss:.2f} nats a byte, {time.perf_counter() - start:.0f} s', flush=True)
    data, held_out, texts = rows(model, 'train', a.rows), rows(model, 'test', 20_000), contexts('test', 64)
    print(f"{'k':>3} {'window':>7} {'L0':>6} {'FVU':>6}  {'of each layer':<27} {'KL':>6} {'agreement':>10} {'CE':>6} {'0 hops':>7} {'seconds':>8}")
    for k in map(float, a.k.split(',')):
        for window in a.windows.split(','):
            start = time.perf_counter()
            clt = train(data, a.steps, k, None if window=='none' else int(window))
            took = time.perf_counter() - start
            fvu, each, l0 = unexplained(clt, held_out)
            report = faithfulness(clt, held_out[:4096, :D*LAYERS], model, texts)
            m = report.predictions['cross-layer']
            print(f"{k:3.0f} {window:>7} {l0:6.1f} {fvu:6.3f}  {' '.join(f'{v:6.3f}' for v in each):<27} {m['kl']:6.3f} {m['agreement']:10.1%} "
                  f"{m['ce']:6.3f} {report.hops_by_activity[0]:7.0%} {took:8.0f}", flush=True)
    for name in ('model', 'zeros'): print(f"{name:>11}: KL {report.predictions[name]['kl']:.3f}, CE {report.predictions[name]['ce']:.3f}")

if __name__ == '__main__': main()
