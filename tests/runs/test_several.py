"""Several dictionaries in one run: each is what it would have been alone, whatever stops the others"""
import json
import shutil
import sys
from dataclasses import replace

import pytest
import sae_workbench as sw
import torch
from peer.wandb_keys import Wandb
from sae_workbench import LoggingConfig, MultiSAETrainingRunner, MultiSAETrainingRunnerConfig, SAE
from sae_workbench.training.runner import LanguageModelSAETrainingRunner

pytestmark = pytest.mark.filterwarnings('ignore:the dataset', 'ignore:the layout')
LAYERS, D = 3, 16
IN, OUT = 'model.layers.{}.post_attention_layernorm', 'model.layers.{}.mlp'


@pytest.fixture(scope='module')
def model():
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=D, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2)).eval()


def texts(): return [{'tokens': t} for t in torch.randint(3, 60, (80, 12), generator=torch.Generator().manual_seed(5)).tolist()]


def transcoders(**options):
    kinds = dict(a=sw.TopKTrainingTranscoderConfig(d_in=D, d_out=D, d_sae=48, k=4, skip=True, init='lstsq_skip', **options),
                 b=sw.StandardTrainingTranscoderConfig(d_in=D, d_out=D, d_sae=32, l1_coefficient=.01, **options))
    return kinds


def config(folder, saes=None, **options):
    saes = transcoders() | dict(c=sw.BatchTopKTrainingSAEConfig(d_in=D, d_sae=40, k=3, normalize_activations='expected_average_only_in')) if saes is None else saes
    usual = dict(hook_names=dict(a=IN.format(0), b=IN.format(2), c=IN.format(0)), hook_names_out=dict(a=OUT.format(0), b=OUT.format(2)))
    return MultiSAETrainingRunnerConfig(saes, **usual | dict(
        model_name='toy', model_class_name='AutoModelForCausalLM', dataset_path='none', context_size=12, training_tokens=30*64, lr=3e-3,
        train_batch_size_tokens=64, store_batch_size_prompts=4, n_eval_batches=2, prepend_bos=False, verbose=False, n_batches_for_norm_estimate=5,
        output_path=str(folder/'out'), checkpoint_path=str(folder/'checkpoints'), logger=LoggingConfig(wandb_log_frequency=10, eval_every_n_wandb_logs=1)) | options)


def same(a, b):
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True): assert torch.equal(p, q), name


def alone(cfg, name, model): return LanguageModelSAETrainingRunner(replace(cfg.runs[name], output_path=None, checkpoint_path=None, resume=None, n_checkpoints=0), texts(), model).run()


def test_each_is_what_it_would_have_been_alone(model, tmp_path):
    "Of other kinds, one of them with a norm to estimate and one that begins from rows"
    runner = MultiSAETrainingRunner(cfg := config(tmp_path), texts(), model)
    trained = runner.run()
    for name, sae in trained.items():
        same(sae, alone(cfg, name, model))
        loaded = SAE.load_from_disk(tmp_path/'out'/name)
        assert loaded.cfg.metadata.hook_name == cfg.hook_names[name] and loaded.cfg.metadata.hook_name_out == cfg.hook_names_out[name]
        log = [json.loads(line) for line in (tmp_path/'out'/name/'log.jsonl').read_text(encoding='utf-8').splitlines()]
        assert any('eval/ce_loss_score' in line for line in log)
    assert runner.metrics['ce_loss_with_sae'] == json.loads((tmp_path/'out'/'replacement.json').read_text(encoding='utf-8'))['ce_loss_with_sae']
    assert not (tmp_path/'out'/'transcoder_set').exists()   # an SAE is among them


class Dies(sw.Callback):
    "Ends the program, or what stands for it, at a step of one of them"
    def __init__(self, at, width): self.at, self.width = at, width

    def on_step(self, trainer, output):
        if trainer.sae.cfg.d_sae == self.width and trainer.n_training_steps == self.at: raise MemoryError('the machine is full')


@pytest.mark.parametrize('at, width', [(3, 48), (17, 32), (25, 40)])
def test_all_go_on_where_they_stood(model, tmp_path, at, width):
    "After an error in one of them; the others are a step ahead of it, or a checkpoint behind"
    cfg = config(tmp_path, resume='auto', n_checkpoints=2)
    with pytest.raises(MemoryError): MultiSAETrainingRunner(cfg, texts(), model, callbacks=[Dies(at, width)]).run()
    (own,) = (tmp_path/'checkpoints'/'a').iterdir()
    saved = sorted((p for p in own.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    if len(saved) > 1: shutil.rmtree(saved[-1])   # the disk has lost one
    again = MultiSAETrainingRunner(config(tmp_path, resume='auto', n_checkpoints=2), texts(), model).run()
    for name, sae in again.items(): same(sae, alone(cfg, name, model))


def test_a_set_is_written_under_the_names_of_transformer_lens(model, tmp_path):
    layers = [f'layer_{i}' for i in range(LAYERS)]
    cfg = sw.BatchTopKTrainingTranscoderConfig(d_in=D, d_out=D, d_sae=48, k=4)
    hooks = dict(hook_names={n: IN.format(i) for i, n in enumerate(layers)}, hook_names_out={n: OUT.format(i) for i, n in enumerate(layers)})
    trained = MultiSAETrainingRunner(config(tmp_path, dict.fromkeys(layers, cfg), **hooks), texts(), model).run()
    said = (tmp_path/'out'/'transcoder_set'/'config.yaml').read_text(encoding='utf-8')
    assert 'feature_input_hook: mlp.hook_in' in said and 'feature_output_hook: mlp.hook_out' in said
    x = torch.randn(9, D)
    for i, name in enumerate(layers):
        back = SAE.from_pretrained(tmp_path/'out'/'transcoder_set', f'layer_{i}')
        torch.testing.assert_close(back(x), trained[name].to_inference()(x))


def test_heads_differ_by_hook(model, tmp_path):
    saes = dict.fromkeys('ab', sw.TopKTrainingSAEConfig(d_in=D//2, d_sae=16, k=2))
    cfg = config(tmp_path, saes, hook_names=dict(a='blocks.0.attn.hook_z', b='blocks.2.attn.hook_z'), hook_names_out=None, hook_head_indices=dict(a=0, b=1))
    trained = MultiSAETrainingRunner(cfg, texts(), model).run()
    for name, sae in trained.items(): same(sae, alone(cfg, name, model))


def test_one_run_of_wandb_for_all(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', wandb := Wandb())
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=10, eval_every_n_wandb_logs=1)
    MultiSAETrainingRunner(config(tmp_path, logger=logger), texts(), model).run()
    assert set(wandb.keys()) >= {f'{name}/losses/overall_loss' for name in 'abc'} | {'details/n_training_samples'}


def test_from_caches(model, tmp_path):
    "Each reads a cache of its own"
    cfg = config(tmp_path)
    source = LanguageModelSAETrainingRunner(cfg.runs['c'], texts(), model).activations_store.source
    sw.write_cache(source, tmp_path/'acts', max_rows=4000, about=dict(hook_name=IN.format(0), context_size=12))
    both = dict.fromkeys('cd', cfg.saes['c'])
    read = config(tmp_path, both, hook_names=IN.format(0), hook_names_out=None, use_cached_activations=True, cached_activations_path=str(tmp_path/'acts'),
                  dataset_path='', output_path=None, checkpoint_path=None, evaluator=lambda sae, data, scaler: {'eval/mine': 1.})   # there is no model
    live = config(tmp_path, both, hook_names=IN.format(0), hook_names_out=None, output_path=None, checkpoint_path=None)
    from_cache = MultiSAETrainingRunner(read).run()
    for name, sae in MultiSAETrainingRunner(live, texts(), model).run().items(): same(sae, from_cache[name])
