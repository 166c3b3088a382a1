"""Models of transformers with random weights, and an SAE of their width, for tests of what happens at a place in them."""
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from sae_workbench.saes.topk import TopKSAE, TopKSAEConfig

D, VOCAB = 16, 64
TOKENS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=None, pad_token_id=0)   # without EOS, no text ends early


def llama(seed: int = 0, layers: int = 2, **options) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=D, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(**TOKENS, **sizes, **options)).eval()


def gpt2(seed: int = 0, layers: int = 2, **options) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=D, n_layer=layers, n_head=2, n_positions=64, **options)).eval()


def make_sae(seed: int = 0, **options) -> TopKSAE:
    torch.manual_seed(seed)
    return TopKSAE(TopKSAEConfig(d_in=D, d_sae=32, k=4, **options))
