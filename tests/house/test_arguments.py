"""Every public function, constructor and method is called with nonsense for each of its arguments: it works, or it says what is wrong.

`GOOD` has one right call for each name. A public name without one fails here, and so does an argument that ends in anything but an error of ours.
"""
import inspect
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

import pytest
import torch
from torch import nn

import sae_workbench
from sae_workbench import *   # noqa: F403
from sae_workbench.core.config import ConfigMeta
from sae_workbench.core.errors import SAEWorkbenchError
from sae_workbench.apps.cli import COMMANDS, main
from sae_workbench.formats.places import Folder

D_IN, D_SAE, VOCAB, CONTEXT = 4, 8, 11, 6
NONSENSE = [None, 'x', '', -1, 0, 1.7, math.nan, True, [], {}, (), object(), [1, 'a'], [-1, 99], torch.ones(2), torch.ones(3, 3, 3), 1j, b'x', print]


class Model(nn.Module):
    "A language model of one layer"
    tokenizer = None
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.out = nn.Embedding(VOCAB, D_IN), nn.Identity(), nn.Linear(D_IN, VOCAB)

    def forward(self, tokens): return self.out(self.layer(self.embed(tokens)))
    def get_output_embeddings(self): return self.out


class Tokens:
    "A tokenizer of numbers"
    eos_token_id = bos_token_id = 0
    sep_token_id, all_special_ids, vocab_size, name_or_path = None, [0], VOCAB, 'numbers'
    def __len__(self): return VOCAB
    def encode(self, text, **_): return [len(w) for w in text.split()] or [1]
    def __call__(self, text, **_): return {'input_ids': self.encode(text) if isinstance(text, str) else [self.encode(t) for t in text]}
    def decode(self, ids, **_): return ' '.join(map(str, ids)) if isinstance(ids, list) else str(ids)
    def batch_decode(self, ids, **_): return [self.decode(i) for i in ids]
    def convert_ids_to_tokens(self, ids): return [str(i) for i in ids]


def seeded(n: int) -> torch.Generator: return torch.Generator().manual_seed(n)
def rows(n: int = 32) -> torch.Tensor: return torch.randn(n, D_IN, generator=seeded(0))
def tokens() -> torch.Tensor: return torch.randint(1, VOCAB, (8, CONTEXT), generator=seeded(1))
def data() -> list[dict]: return [dict(tokens=row) for row in tokens().tolist()]


def model() -> Model:
    m = Model()
    m.tokenizer = Tokens()
    return m


def sae(cls=TopKSAE, **options):
    return cls(TopKSAEConfig(D_IN, D_SAE, k=2, metadata=SAEMetadata(hook_name='layer', model_name='toy', prepend_bos=False), **options))


def learner(cls=TopKTrainingSAE): return cls(TopKTrainingSAEConfig(D_IN, D_SAE, k=2, metadata=SAEMetadata(hook_name='layer')))
def transcoder(): return TopKTranscoder(TopKTranscoderConfig(D_IN, D_SAE, k=2, d_out=D_IN, metadata=SAEMetadata(hook_name='embed', hook_name_out='layer')))
def crosscoder(): return Crosscoder(CrosscoderConfig(dict(a=D_IN, b=D_IN), D_SAE, metadata=SAEMetadata(hook_name='layer')))
def paired(): return PairedSource(dict(a=model(), b=model()), 'layer', contexts(), batch_size_prompts=2)
def cross_layer(n=2):
    facts = SAEMetadata(model_name='toy', hook_name=[f'blocks.{i}.hook_resid_mid' for i in range(n)], hook_name_out=[f'blocks.{i}.hook_mlp_out' for i in range(n)])
    return CrossLayerTranscoder(CrossLayerTranscoderConfig(D_IN, D_SAE, d_out=D_IN, n_layers=n, metadata=facts))



def loop(**options): return SAETrainerConfig(total_training_samples=8, train_batch_size_samples=4, **options)
def trainer(): return SAETrainer(loop(), learner(), iter(rows().split(4)))
def stats(): return latent_stats(RowLatents(sae(), rows()))
def texts(): return TextLatents(sae(), model(), tokens())
def contexts(): return TokenContexts(data(), context_size=CONTEXT, prepend_bos=False)
def source(): return LanguageModelSource(model(), 'layer', contexts(), batch_size_prompts=2)
def layers(): return LayerSources(LanguageModelSource(model(), ['layer', 'embed'], contexts(), batch_size_prompts=2))
def saved(at: Path) -> Path: return (sae().save_model(at/'saved'), at/'saved')[1]
def cached(at: Path) -> Path: return (write_cache(TensorSource(rows(), epochs=1), at/'cache'), at/'cache')[1]
def step(): return TrainStepInput(rows(4), {}, None, 0)


def caching(at: Path) -> CacheActivationsRunnerConfig:
    return CacheActivationsRunnerConfig(
        model_name='toy', hook_name='layer', dataset_path='none', training_tokens=24, context_size=CONTEXT, d_in=D_IN, prepend_bos=False, model_batch_size=2,
        new_cached_activations_path=str(at/'made'))


def store(**options):
    return ActivationsStore.from_sae(model(), sae(), data(), context_size=CONTEXT, streaming=False, store_batch_size_prompts=2,
                                     n_batches_in_buffer=4, train_batch_size_tokens=8, **options)


def several_options(at: Path):
    saes = dict(a=TopKTrainingSAEConfig(D_IN, D_SAE, k=2), b=TopKTrainingSAEConfig(D_IN, 2*D_SAE, k=2))
    return dict(saes=saes, hook_names='layer', hook_head_indices=None, hook_names_out=None, evaluator=None, dataset_path='none', prepend_bos=False,
                context_size=CONTEXT, training_tokens=16, train_batch_size_tokens=8, store_batch_size_prompts=2, output_path=str(at/'out'))


def run(at: Path, **options):
    cfg = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(D_IN, D_SAE, k=2), model_name='toy', hook_name='layer', dataset_path='none', streaming=False, prepend_bos=False,
        context_size=CONTEXT, training_tokens=16, train_batch_size_tokens=8, n_batches_in_buffer=4, store_batch_size_prompts=2,
        output_path=str(at/'out'), checkpoint_path=str(at/'check'), **options)
    return dict(cfg=cfg, override_dataset=data(), override_model=model())


def monitor():
    t = trainer()
    return TrainingMonitor(t)


def explorer(): return explore(sae(), data=rows())
def chooser(): return ArchitectureChooser()
def bridge(_): return pytest.skip('made from a model of TransformerLens; its own test calls it')


# One right call for each public name: from a folder to a function and its arguments by name.
GOOD = {
    'register_sae_class': lambda at: (register_sae_class, dict(architecture='topk', sae_class=TopKSAE, sae_config_class=TopKSAEConfig)),
    'register_sae_training_class': lambda at: (register_sae_training_class, dict(
        architecture='topk', sae_training_class=TopKTrainingSAE, sae_training_config_class=TopKTrainingSAEConfig)),
    'get_sae_class': lambda at: (get_sae_class, dict(architecture='topk')),
    'get_sae_training_class': lambda at: (get_sae_training_class, dict(architecture='topk')),
    'recovered': lambda at: (recovered, dict(W_dec=rows(), features=rows(), threshold=.9)),
    'mmcs': lambda at: (mmcs, dict(found=rows(), truth=rows())),
    'match': lambda at: (match, dict(found=rows(), truth=rows())),
    'firing_scores': lambda at: (firing_scores, dict(acts=rows(), code=rows(), latents=torch.arange(D_IN))),
    'capture': lambda at: (lambda **kw: capture(**kw, tokens=tokens()), dict(model=model(), names='layer', stop=True)),
    'replacing': lambda at: (replacing, dict(model=model(), fns={'layer': lambda x: x}, first=False)),
    'SAEMetadata': lambda at: (lambda facts=(), **more: SAEMetadata(facts, **more), dict(facts={})),
    'SAEMetadata.from_dict': lambda at: (SAEMetadata.from_dict, dict(data={})),
    'TrainCoefficientConfig': lambda at: (TrainCoefficientConfig, dict(value=1., warm_up_steps=3)),
    'model_card': lambda at: (model_card, dict(saes={'a': sae().cfg}, repo='a/b', folder='f', more='text')),
    'TokenContexts': lambda at: (TokenContexts, dict(
        dataset=data(), tokenizer=None, context_size=4, prepend_bos=False, sequence_separator_token=None, disable_concat_sequences=False,
        use_chat_formatting=False, column='tokens', epochs=1)),
    'TokenContexts.take': lambda at: (contexts().take, dict(n=1, wrap=True)),
    'TokenContexts.holds': lambda at: (contexts().holds, dict(n=1)),
    'TokenContexts.require': lambda at: (contexts().require, dict(n=1, why='so')),
    'PretokenizeRunner': lambda at: (PretokenizeRunner, dict(
        cfg=PretokenizeRunnerConfig(tokenizer_name='x', dataset_path='x'), override_dataset=data(), override_tokenizer=Tokens())),
    'load_model': lambda at: (load_model, dict(
        model_class_name='AutoModelForCausalLM', model_name=str(at/'none'), device='cpu', model_from_pretrained_kwargs={}, hook_names=['a'])),
    'TensorSource': lambda at: (TensorSource, dict(acts=rows(), rows=4, shuffle=False, seed=0, epochs=1, target=rows()[:, :2])),
    'LanguageModelSource': lambda at: (LanguageModelSource, dict(
        model=model(), hook_name='layer', contexts=contexts(), batch_size_prompts=2, d_in=D_IN, hook_head_index=None, seqpos_slice=(None,),
        exclude_special_tokens=False, autocast_lm=False, device='cpu', dtype=torch.float32, model_kwargs={}, hook_name_out='embed')),
    'ModuleSource': lambda at: (ModuleSource, dict(
        model=nn.Sequential(nn.Linear(D_IN, D_IN), nn.ReLU()), name='0', inputs=rows(), tokens='all', batch_size=4, shuffle=False, seed=0, epochs=1,
        prepare=lambda x: x, mask='attention_mask', channel_dim=None, d_in=None, autocast=False, device='cpu', dtype=None, hook_name_out='1')),
    'LayerSources': lambda at: (LayerSources, dict(
        source=LanguageModelSource(model(), ['layer', 'embed'], contexts(), batch_size_prompts=2), max_ahead=4)),
    'SideBySide': lambda at: (SideBySide, dict(source=LanguageModelSource(model(), ['layer', 'embed'], contexts(), batch_size_prompts=2))),
    'SyntheticSource': lambda at: (SyntheticSource, dict(
        n_features=8, d_in=4, p_active=.1, batch_size=4, noise=0., seed=0, correlation=None, parents=None, magnitude=(1., 2.), features=None)),
    'SyntheticSource.batch': lambda at: (SyntheticSource(8, 4).batch, dict(n=0)),
    'grouped': lambda at: (grouped, dict(n_features=8, size=2, rho=.5)),
    'trees': lambda at: (trees, dict(n_features=8, p_root=.1, p_child=.3, branching=2, depth=2)),
    'zipf': lambda at: (zipf, dict(n_features=8, largest=.1, exponent=1.)),
    'MixingBuffer': lambda at: (MixingBuffer, dict(
        source=iter([rows()]), buffer_size=16, batch_size=4, mix_fraction=.5, generator=None, device='cpu')),
    'ActivationScaler': lambda at: (ActivationScaler, dict(scaling_factor=2.)),
    'ActivationScaler.scale': lambda at: (ActivationScaler(2.).scale, dict(acts=rows())),
    'ActivationScaler.estimate_whitening': lambda at: (ActivationScaler().estimate_whitening, dict(
        d_in=D_IN, data_provider=iter([rows()]), n_batches_for_norm_estimate=1, eps=1e-5)),
    'ActivationScaler.unscale': lambda at: (ActivationScaler(2.).unscale, dict(acts=rows())),
    'ActivationScaler.estimate_scaling_factor': lambda at: (ActivationScaler().estimate_scaling_factor, dict(
        d_in=D_IN, data_provider=iter([rows()]), n_batches_for_norm_estimate=1)),
    'ActivationScaler.save': lambda at: (ActivationScaler(2.).save, dict(file_path=at/'scaler.json')),
    'ActivationScaler.load': lambda at: (ActivationScaler(2.).load, dict(file_path=(ActivationScaler(2.).save(at/'s.json'), at/'s.json')[1])),
    'write_cache': lambda at: (write_cache, dict(
        source=TensorSource(rows(), epochs=1), folder=at/'new', max_rows=8, rows_per_shard=4, dtype='float32', shuffle=False, seed=0, about={})),
    'write_caches': lambda at: (write_caches, dict(
        make_sources=lambda keys: {k: TensorSource(rows(), epochs=1) for k in keys}, folders={'a': at/'a'}, options={'a': {}})),
    'ShardSource': lambda at: (ShardSource, dict(
        folder=cached(at), rows=4, shuffle=None, seed=None, epochs=1, excluded=None, device='cpu', dtype=None, verify=False)),
    'ActivationsStore': lambda at: (ActivationsStore, dict(
        model=model(), dataset=data(), streaming=False, hook_name='layer', hook_head_index=None, context_size=CONTEXT, d_in=D_IN, n_batches_in_buffer=4,
        total_training_tokens=16, store_batch_size_prompts=2, train_batch_size_tokens=8, prepend_bos=False, normalize_activations='none',
        device='cpu', dtype='float32', hook_name_out='embed')),
    'ActivationsStore.from_cache_activations': lambda at: (ActivationsStore.from_cache_activations, dict(
        model=model(), cfg=(cfg := caching(at), CacheActivationsRunner(cfg, data(), model()).run())[0])),
    'ActivationsStore.from_sae': lambda at: (ActivationsStore.from_sae, dict(
        model=model(), sae=sae(), dataset=data(), dataset_trust_remote_code=False, context_size=CONTEXT, streaming=False, store_batch_size_prompts=2,
        n_batches_in_buffer=4, train_batch_size_tokens=8, total_tokens=16, device='cpu')),
    'ActivationsStore.from_config': lambda at: (ActivationsStore.from_config, dict(
        model=model(), cfg=run(at)['cfg'], override_dataset=data())),
    'ActivationsStore.eval_contexts': lambda at: (store().eval_contexts, dict(seed=None)),
    'ActivationsStore.save': lambda at: (store().save, dict(file_path=at/'state.safetensors')),
    'ActivationsStore.load': lambda at: (lambda s: (s.load, dict(file_path=(s.save(at/'s.safetensors'), at/'s.safetensors')[1])))(store()),
    'ActivationsStore.save_to_checkpoint': lambda at: (store().save_to_checkpoint, dict(checkpoint_path=at)),
    'ActivationsStore.load_from_checkpoint': lambda at: (
        lambda s: (s.load_from_checkpoint, dict(checkpoint_path=(s.save_to_checkpoint(at), at)[1])))(store()),
    'ActivationsStore.get_activations': lambda at: (store().get_activations, dict(batch_tokens=tokens())),
    'ActivationsStore.get_raw_llm_batch': lambda at: (store().get_raw_llm_batch, dict(raise_on_epoch_end=False)),
    'ActivationsStore.get_filtered_llm_batch': lambda at: (store().get_filtered_llm_batch, dict(raise_on_epoch_end=False)),
    'ActivationsStore.get_batch_tokens': lambda at: (store().get_batch_tokens, dict(
        batch_size=2, raise_at_epoch_end=False, move_to_model_device=True)),
    'ActivationsStore.skip_rows': lambda at: (store().skip_rows, dict(n=8)),
    'ActivationsStore.shuffle_input_dataset': lambda at: (store().shuffle_input_dataset, dict(seed=0, buffer_size=1)),
    'CacheActivationsRunner': lambda at: (CacheActivationsRunner, dict(
        cfg=caching(at), override_dataset=data(), override_model=model())),
    'share_passes': lambda at: (share_passes, dict(source=source(), team=processes())),
    'migrate_config': lambda at: (migrate_config, dict(old={'architecture': 'standard', 'd_in': 4, 'd_sae': 8}, from_version=3)),
    'Checkpoints': lambda at: (Checkpoints, dict(folder=at/'c', keep_last=2)),
    'Checkpoints.save': lambda at: (Checkpoints(at/'c').save, dict(trainer=trainer(), run_config={}, must=False)),
    'Checkpoints.load': lambda at: (Checkpoints(at/'c').load, dict(trainer=trainer(), run_config={}, overrides=[])),
    'latest': lambda at: (latest, dict(folder=at)),
    'save_checkpoint': lambda at: (save_checkpoint, dict(path=at/'c', trainer=trainer(), store=None, run_config={})),
    'load_checkpoint': lambda at: (load_checkpoint, dict(
        path=save_checkpoint(at/'c', trainer()), trainer=trainer(), store=None, run_config=None, overrides=())),
    'CoefficientChanges': lambda at: (CoefficientChanges, dict(planned=[dict(step=1, lr=.1)])),
    'CoefficientChanges.ask': lambda at: (CoefficientChanges().ask, dict(trainer=trainer(), name='lr', value=.1)),
    'changes_of': lambda at: (changes_of, dict(lines=[dict(step=1)])),
    'SAETrainer': lambda at: (SAETrainer, dict(
        cfg=loop(), sae=learner(), data_provider=iter(rows().split(4)), evaluator=None, save_checkpoint_fn=None, callbacks=(), team=None)),
    'SAETrainer.step': lambda at: (trainer().step, dict(batch=rows(4))),
    'SAETrainer.save_checkpoint': lambda at: (trainer().save_checkpoint, dict(checkpoint_name='a', base_path=at)),
    'SAETrainer.save_trainer_state': lambda at: (trainer().save_trainer_state, dict(checkpoint_path=at)),
    'SAETrainer.load_trainer_state': lambda at: (
        trainer().load_trainer_state, dict(checkpoint_path=(trainer().save_trainer_state(at), at)[1])),
    'train_together': lambda at: (train_together, dict(trainers=[trainer()])),
    'evaluate_replacement': lambda at: (evaluate_replacement, dict(
        saes=[sae()], model=model(), contexts=tokens(), exclude_tokens=[], batch_size_prompts=2, seqpos_slice=(None,), model_kwargs=None)),
    'MultiSAETrainingRunnerConfig': lambda at: (MultiSAETrainingRunnerConfig, several_options(at)),
    'MultiSAETrainingRunnerConfig.from_dict': lambda at: (
        MultiSAETrainingRunnerConfig.from_dict, dict(cfg_dict=MultiSAETrainingRunnerConfig(**several_options(at)).to_dict())),
    'MultiSAETrainingRunner': lambda at: (MultiSAETrainingRunner, dict(
        cfg=MultiSAETrainingRunnerConfig(**several_options(at)), override_dataset=data(), override_model=model(), override_saes=None, callbacks=[])),
    'MultiSAETrainingRunner.save_transcoder_set': lambda at: (
        MultiSAETrainingRunner(MultiSAETrainingRunnerConfig(**several_options(at)), data(), model()).save_transcoder_set, dict(path=at/'set')),
    'LanguageModelSAETrainingRunner.prepare': lambda at: (
        LanguageModelSAETrainingRunner(**run(at)).prepare, dict(auto=False, must=False)),
    'evaluate_sae': lambda at: (evaluate_sae, dict(
        sae=sae(), model=model(), contexts=tokens(), hook_name='layer', hook_head_index=None, activation_scaler=None, exclude_tokens=None,
        batch_size_prompts=2, seqpos_slice=None)),
    'finetuner': lambda at: (finetuner, dict(
        sae=learner(), model=model(), contexts=tokens(), hook_name='layer', loss='kl', training_tokens=8, batch_size_prompts=1, lr=1e-4, hook_name_out=None,
        exclude_special_tokens=False, seqpos_slice=None, model_kwargs={}, autocast_lm=False, seed=0, evaluator=None, callbacks=())),
    'finetune_on_model': lambda at: (finetune_on_model, dict(
        sae=sae(), model=model(), contexts=tokens(), hook_name='layer', loss='kl', training_tokens=8, resume=False)),
    'read_log': lambda at: (read_log, dict(path=at)),
    'LanguageModelSAETrainingRunner': lambda at: (LanguageModelSAETrainingRunner, dict(
        **run(at), override_sae=None, resume_from_checkpoint=None)),
    'SAETrainingRunner': lambda at: (SAETrainingRunner, run(at)),
    'LanguageModelSAETrainingRunner.save': lambda at: (LanguageModelSAETrainingRunner(**run(at)).save, dict(path=at/'out2')),
    'LanguageModelSAETrainingRunner.save_checkpoint': lambda at: (
        lambda r: (r.save_checkpoint, dict(trainer=trainer())))(LanguageModelSAETrainingRunner(**run(at))),
    'LanguageModelSAETrainingRunner.save_final_sae': lambda at: (LanguageModelSAETrainingRunner(**run(at)).save_final_sae, dict(
        sae=learner(), output_path=at/'out3', log_feature_sparsity=None)),
    'convert_to_safetensors': lambda at: (convert_to_safetensors, dict(
        path=(torch.save({'a': torch.ones(2)}, at/'w.pt'), at/'w.pt')[1], out=at/'w.safetensors')),
    'register_format': lambda at: (register_format, dict(cls=type('Own', (Format,), dict(name='own')))),
    'find_saes': lambda at: (find_saes, dict(place=Folder(saved(at)), under='')),
    'save_transcoder_set': lambda at: (save_transcoder_set, dict(transcoders=[transcoder()], path=at/'set', scan=None)),
    'search': lambda at: (search, dict(query='gemma', limit=2)),
    'neuronpedia_url': lambda at: (neuronpedia_url, dict(release='gpt2-small-res-jb', sae_id='blocks.0.hook_resid_pre', latent=3)),
    'neuronpedia_id': lambda at: (neuronpedia_id, dict(sae=sae(), source='res-jb')),
    'upload_saes_to_huggingface': lambda at: (upload_saes_to_huggingface, dict(
        saes_dict={'a': sae()}, hf_repo_id='a/b', hf_revision='main', show_progress=False, add_default_readme=True, token='t', private=None,
        commit_message='m')),
    'TextLatents': lambda at: (TextLatents, dict(
        sae=sae(), model=model(), contexts=tokens(), hook_name='layer', tokenizer=Tokens(), window=(2, 2), batch_size=2, ignore_tokens=[0])),
    'latent_examples': lambda at: (latent_examples, dict(
        sae=sae(), model=model(), contexts=tokens(), latents=[1], n_examples=2, n_latents=2, hook_name='layer', tokenizer=Tokens(), window=(2, 2),
        batch_size=2, ignore_tokens=[0])),
    'RowLatents': lambda at: (RowLatents, dict(sae=sae(), acts=rows(), labels=None, pictures=None, batch_size=8)),
    'LatentStats': lambda at: (LatentStats, dict(source=texts(), latents=[1], n_examples=2, n_samples=2, seed=0)),
    'LatentStats.column': lambda at: (stats().column, dict(latent=1)),
    'latent_stats': lambda at: (latent_stats, dict(source=RowLatents(sae(), rows()), latents=[1], n_examples=2, n_samples=2, seed=0, progress=False)),
    'latent_table': lambda at: (latent_table, dict(stats=stats(), nearest=True)),
    'nearest_latents': lambda at: (nearest_latents, dict(sae=sae(), latents=[1], n=2)),
    'logit_effects': lambda at: (logit_effects, dict(model=model(), directions=rows())),
    'latent_page': lambda at: (latent_page, dict(stats=stats(), latent=1)),
    'latent_pages': lambda at: (latent_pages, dict(stats=stats(), latents=[1], n_logits=2, n_nearest=2)),
    'dashboard': lambda at: (dashboard, dict(stats=stats(), path=at/'page.html', latents=[1], n=2, title='t')),
    'attach': lambda at: (attach, dict(model=model(), saes=sae(), name='layer', use_error_term=None, keep=None, head_index=None)),
    'intervene': lambda at: (intervene, dict(sae=sae(), latents=[1], mode='clamp', value=1., positions=None, cached=None)),
    'random_dictionary': lambda at: (random_dictionary, dict(x=rows(), d_sae=4, k=2, seed=0)),
    'frozen_encoder': lambda at: (frozen_encoder, dict(x=rows(), d_sae=4, k=2, seed=0)),
    'run_evals': lambda at: (run_evals, dict(
        sae=sae(), activation_store=tokens(), model=model(), activation_scaler=None,
        eval_config=get_eval_everything_config(2, 1, 1, baselines=False), model_kwargs=None, exclude_special_tokens=False)),
    'get_eval_everything_config': lambda at: (get_eval_everything_config, dict(
        batch_size_prompts=2, n_eval_reconstruction_batches=1, n_eval_sparsity_variance_batches=1)),
    'RunHistory': lambda at: (RunHistory, dict(name='a', max_points=10)),
    'RunHistory.add': lambda at: (RunHistory().add, dict(line=dict(step=1))),
    'TrainingMonitor': lambda at: (TrainingMonitor, dict(run=trainer())),
    'TrainingMonitor.set': lambda at: (monitor().set, dict(name='lr', value=.1)),
    'TrainingMonitor.wait': lambda at: (monitor().wait, dict(timeout=.01)),
    'LogMonitor': lambda at: (lambda path, **kw: LogMonitor(path, **kw), dict(path=at/'log.jsonl', names=['a'], x='step', every=1.)),
    'compare_runs': lambda at: (lambda run, **kw: compare_runs(run, **kw), dict(run=RunHistory(), names=['a'], x='step')),
    'choose_architecture': lambda at: (choose_architecture, dict(config=None, architecture='topk', model_parameters=None)),
    'ArchitectureChooser': lambda at: (ArchitectureChooser, dict(config=None, architecture='topk', model_parameters=None)),
    'ArchitectureChooser.choose': lambda at: (chooser().choose, dict(architecture='topk')),
    'ArchitectureChooser.load': lambda at: (chooser().load, dict(old={})),
    'explore': lambda at: (explore, dict(sae=sae(), model=None, data=rows(), n_tokens=16, hook_name=None, tokenizer=None)),
    'LatentExplorer': lambda at: (LatentExplorer, dict(stats=stats())),
    'LatentExplorer.pick': lambda at: (explorer().pick, dict(latent=1)),
    'LatentExplorer.read': lambda at: (explorer().read, dict(text='a b')),
    'LatentExplorer.steer': lambda at: (explorer().steer, dict(prompt='a', latent=1, times=1., mode='steer', n=2)),
    'LatentExplorer.find': lambda at: (explorer().find, dict(text='', density=(0., 1.), min_act=0., sort='rank', down=None)),
    'LatentExplorer.page': lambda at: (explorer().page, dict(latent=1)),
    'LatentExplorer.strength': lambda at: (explorer().strength, dict(latent=1)),
    # of every SAE
    'SAE.load_from_disk': lambda at: (SAE.load_from_disk, dict(path=saved(at), device='cpu', dtype='float32', fold_W_dec_norm=False)),
    'SAE.load_from_pretrained': lambda at: (SAE.load_from_pretrained, dict(path=saved(at), device='cpu', dtype='float32')),
    'SAE.from_pretrained': lambda at: (SAE.from_pretrained, dict(
        release=str(saved(at)), sae_id=None, device='cpu', dtype='float32', force_download=False, converter=None, fold_W_dec_norm=False,
        revision=None, cache_dir=None, token=None)),
    'SAE.from_pretrained_with_cfg_and_sparsity': lambda at: (SAE.from_pretrained_with_cfg_and_sparsity, dict(
        release=str(saved(at)), sae_id=None, device='cpu', dtype='float32', force_download=False, converter=None, fold_W_dec_norm=False)),
    'SAE.save_pretrained': lambda at: (sae().save_pretrained, dict(path=at/'new')),
    'SAE.push_to_hub': lambda at: (sae().push_to_hub, dict(repo_id='a/b', sae_id='c')),
    'SAE.from_dict': lambda at: (SAE.from_dict, dict(config_dict=sae().cfg.to_dict())),
    'SAE.get_sae_class_for_architecture': lambda at: (SAE.get_sae_class_for_architecture, dict(architecture='topk')),
    'SAE.get_sae_config_class_for_architecture': lambda at: (SAE.get_sae_config_class_for_architecture, dict(architecture='topk')),
    'SAE.save_model': lambda at: (sae().save_model, dict(path=at/'new')),
    'SAE.fold_activation_norm_scaling_factor': lambda at: (sae().fold_activation_norm_scaling_factor, dict(scaling_factor=2.)),
    'SAE.fold_activation_whitening': lambda at: (sae().fold_activation_whitening, dict(
        mean=torch.zeros(D_IN), whitening_matrix=torch.eye(D_IN), unwhitening_matrix=torch.eye(D_IN))),
    'SAE.forward': lambda at: (sae(), dict(x=rows())),
    'SAE.encode': lambda at: (sae().encode, dict(x=rows())),
    'SAE.encode_with_hidden_pre': lambda at: (sae().encode_with_hidden_pre, dict(x=rows())),
    'SAE.process_sae_in': lambda at: (sae().process_sae_in, dict(sae_in=rows())),
    'SAE.decode': lambda at: (sae().decode, dict(feature_acts=torch.zeros(2, D_SAE))),
    'SAE.run_with_hooks': lambda at: (sae().run_with_hooks, dict(x=rows(), fwd_hooks=[], bwd_hooks=[])),
    'SAE.run_with_cache': lambda at: (sae().run_with_cache, dict(x=rows(), names_filter=None)),
    'SAE.hooks': lambda at: (sae().hooks, dict(fwd_hooks=[], bwd_hooks=[])),
    'SAE.add_hook': lambda at: (sae().add_hook, dict(name='hook_sae_input', hook=lambda x, hook: x, dir='fwd', is_permanent=False)),
    'SAE.add_perma_hook': lambda at: (sae().add_perma_hook, dict(name='hook_sae_input', hook=lambda x, hook: x, dir='fwd')),
    'SAE.reset_hooks': lambda at: (sae().reset_hooks, dict(clear_contexts=True, direction='both', including_permanent=False)),
    'TrainingSAE.save_inference_model': lambda at: (learner().save_inference_model, dict(path=at/'new')),
    'TrainingSAE.load_weights_from_checkpoint': lambda at: (
        learner().load_weights_from_checkpoint, dict(checkpoint_path=(learner().save_model(at/'w'), at/'w')[1])),
    'PairedSource': lambda at: (PairedSource, dict(
        models=dict(a=model(), b=model()), hook_name='layer', contexts=contexts(), batch_size_prompts=2, seqpos_slice=(None,),
        exclude_special_tokens=False, without_adapter=[], autocast_lm=False, device=None, dtype=None, model_kwargs=None)),
    'Difference': lambda at: (Difference, dict(source=paired(), tuned='b', base='a')),
    'compare_views': lambda at: (compare_views, dict(cc=crosscoder(), data=[rows(), rows()], base=0, tuned='b', n_batches=None)),
    'save_crosscoder': lambda at: (save_crosscoder, dict(cc=crosscoder(), path=at/'new', layout='kissane')),
    'norm_shares': lambda at: (norm_shares, dict(cc=crosscoder())),
    'swap_latents': lambda at: (swap_latents, dict(cc=crosscoder(), x=[rows(), rows()], latents=torch.tensor([1]), base='a', tuned=1)),
    'swap_check': lambda at: (swap_check, dict(
        cc=crosscoder(), base_model=model(), tuned_model=model(), contexts=tokens(), ranking=torch.tensor([1, 0]), hook_name='layer', sizes=[1],
        base='a', tuned=1, batch_size_prompts=2, skip_first=0, seed=0)),
    'Crosscoder.views': lambda at: (Crosscoder(CrosscoderConfig([D_IN - 1, 1], D_SAE)).views, dict(x=rows())),
    'Transcoder.forward': lambda at: (transcoder(), dict(x=rows(), y=rows())),
    'save_cross_layer_set': lambda at: (save_cross_layer_set, dict(clt=cross_layer(), path=at/'set', scan=None)),
    'attach_cross_layer': lambda at: (attach_cross_layer, dict(model=model(), clt=cross_layer(1), read=['embed'], write=['layer'], use_error_term=False, keep=None)),
    'faithfulness': lambda at: (faithfulness, dict(clt=cross_layer(), x=torch.randn(5, 2*D_IN), model=None, contexts=None, beside=None, directions=None, most=.5)),
    'CrossLayerTranscoder.decoder': lambda at: (cross_layer().decoder, dict(layer=0, target=1)),
    'load_lazily': lambda at: (load_lazily, dict(path=(cross_layer().save_model(at/'clt'), at/'clt')[1], device='cpu', dtype=None)),
    'Transcoder.forward_with_activations': lambda at: (transcoder().forward_with_activations, dict(x=rows())),
    'TemporalSAE.encode_with_predictions': lambda at: (temporal().encode_with_predictions, dict(x=rows())),
    'SAETransformerBridge': bridge, **{f'SAETransformerBridge.{n}': bridge for n in (
        'boot_transformers', 'boot_native', 'from_model', 'run_with_cache_with_saes', 'run_with_hooks_with_saes', 'run_with_saes', 'saes',
        'reset_saes', 'get_sae_hook_name', 'add_sae')}}

def temporal(): return TemporalSAE(TemporalSAEConfig(D_IN, D_SAE, n_heads=1, bottleneck_factor=1))


# What the library calls itself, what an architecture overrides, and results: nobody calls these with arguments of their own.
INNER = {
    'process_state_dict_for_saving', 'process_state_dict_for_loading', 'process_state_dict_for_saving_inference', 'training_forward_pass',
    'calculate_aux_loss', 'calculate_topk_aux_loss', 'update_topk_threshold', 'run_time_activation_norm_fn_in', 'run_time_activation_norm_fn_out', 'reshape_fn_in',
    'reshape_fn_out', 'load_state_dict', 'state_dict', 'on_begin', 'on_restart', 'on_start', 'on_step', 'after_step', 'on_log', 'on_end', 'on_stop',
    'on_nonfinite', 'on_error', 'on_close', 'on_norm', 'tell', 'tell_all', 'train', 'with_error_term', 'values', 'start_epoch', 'cached_rows', 'need', 'build_train_step_log_dict', 'tidy', 'claims',
    'elsewhere', 'cfg', 'state', 'batches', 'example', 'texts', 'label', 'update', 'sources', 'options', 'in_reach', 'run', 'warn', 'go_to', 'again',
    'compile_step', 'load_from_pretrained_with_cfg_and_sparsity',
    'lookup', 'parameter', 'per_latent', 'activate', 'decode_linear', 'prepare_input', 'process_sae_out', 'reconstruct', 'write', 'with_skip', 'missing', 'encoder_at_start', 'start_from_rows',
    'split', 'all_losses', 'warn_of', 'dead_code', 'dead_loss', 'gate_losses', 'jump', 'pulled_up', 'row_penalty', 'penalties', 'complete', 'inner_losses', 'level_aux_loss',
    'is_row', 'each', 'read_from', 'layer_at_start', 'by_layer', 'scale_latents', 'note_smallest', 'averaged', 'learnt_threshold', 'settled'}
INNER_OF = {'TopKSAE.fold_activation_whitening', 'MixingBuffer.take', 'LayerSources.take', 'ArchitectureChooser.set'}
# They run in every step, so that they look at their tensor themselves, or hand what they do not know on to a model.
DIRECT = {
    'capture', 'TrainCoefficientConfig', 'SAE.forward', 'SAE.encode', 'SAE.encode_with_hidden_pre', 'SAE.process_sae_in', 'SAE.decode', 'SAE.run_with_hooks',
    'SAE.run_with_cache', 'Crosscoder.views', 'Transcoder.forward', 'Transcoder.forward_with_activations', 'ActivationScaler.scale', 'ActivationScaler.unscale',
    'TemporalSAE.encode_with_predictions'}
FUNCTIONS = {'converter', 'make_sources'}   # a function of one's own raises what it likes
RESULTS = {'TrainStepInput', 'TrainStepOutput', 'LatentPage', 'Interrupted'}


def takes_arguments(f) -> bool:
    return any(p.name not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(f).parameters.values())


def methods(cls) -> Iterator[tuple[str, object]]:
    for c in cls.__mro__:
        if c.__module__.startswith('sae_workbench'):
            yield from ((n, getattr(m, '__func__', m)) for n, m in vars(c).items() if not n.startswith('_'))


def public() -> Iterator[str]:
    "Every public function, class and method that takes arguments; what is inherited once, under the class that comes first"
    seen = {f for _, f in methods(nn.Module)}
    for name in sae_workbench.__all__:
        thing = getattr(sae_workbench, name)
        thing = getattr(thing, name) if inspect.ismodule(thing) else thing   # a v6 module of that name, if one was imported
        if isinstance(thing, ConfigMeta) or inspect.isclass(thing) and issubclass(thing, SAEWorkbenchError):
            continue   # configs are checked otherwise
        if name not in RESULTS and takes_arguments(thing) and not (inspect.isclass(thing) and issubclass(thing, SAE)):
            yield name
        for method, f in methods(thing) if inspect.isclass(thing) and name not in RESULTS else ():
            if inspect.isfunction(f) and f not in seen and method not in INNER and f'{name}.{method}' not in INNER_OF and takes_arguments(f):
                seen.add(f)
                yield f'{name}.{method}'


def overridden(name: str) -> str:
    "The name under which a method of an SAE is tried; a form of its own takes the same arguments"
    cls, _, method = name.partition('.')
    first = next((c for c in ('SAE', 'TrainingSAE') if f'{c}.{method}' in GOOD), None)
    return f'{first}.{method}' if first and name not in GOOD and issubclass(getattr(sae_workbench, cls), SAE) else name


def test_every_public_name_is_tried():
    names = {overridden(n) for n in public()}
    assert names - GOOD.keys() == set()
    assert GOOD.keys() - names <= {'SAE.forward', 'SAETrainingRunner', 'register_format'} | {n for n in GOOD if n.startswith('SAETransformerBridge')}


def entered(out) -> None:
    "A context is entered, and left"
    with out if isinstance(out, AbstractContextManager) else nullcontext():
        pass


@pytest.mark.parametrize('name', GOOD)
def test_nonsense(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter('ignore')
    n, bare, silent = 0, [], io.StringIO()

    def fresh():
        nonlocal n
        n += 1
        at = tmp_path/str(n)
        at.mkdir()
        return GOOD[name](at)
    _, given = fresh()
    with redirect_stdout(silent):
        for argument in [*given, *['no_such_argument'] * (name not in DIRECT)]:
            for value in [v for v in NONSENSE if argument not in FUNCTIONS or v is not print] if argument in given else [1]:
                fn, given = fresh()
                try:
                    entered(fn(**given | {argument: value}))
                except (SAEWorkbenchError, NotImplementedError):   # the second where v6 refuses to fold, in words of ours
                    pass
                except Exception as e:
                    bare.append(f'{argument}={value!r:.40}: {type(e).__name__}: {e!s:.120}')
    assert not bare, f'{len(bare)} bare errors\n' + '\n'.join(bare)


LISTS = [[0., 1., 0., 1.]]
NAMED = {   # what was accepted without a word, or ended in a traceback
    'nearest_latents(sae(), [-1])': 'latents [-1] do not exist',
    'nearest_latents(sae(), [1.7])': 'the number of a latent is a whole number',
    "dashboard(stats(), 'page.html', n=-3)": 'n=-3: must be at least 1',
    "intervene(sae(), [1, 1], 'steer', [1, 2])": 'a number occurs twice',
    "intervene(sae(), '3')": 'latents must be a number or a list of numbers',
    'intervene(sae(), None)': 'latents must be a number or a list of numbers',
    'intervene(sae(), [[1], [2, 3]])': 'latents must be a number or a list of numbers',
    "attach(model(), sae(), use_error_term='no')": "use_error_term='no': must be True or False",
    "TopKSAE(sae().cfg, use_error_term='no')": "TopKSAE: use_error_term='no': must be True or False",
    'attach(None, sae())': 'model=None: must be of type Module',
    'attach(model(), None)': 'expected an SAE',
    'attach(model(), sae(), name=5)': 'name=5: must be text',
    'run_evals(None, tokens())': 'sae=None: must be of type SAE',
    'SAE.from_dict({})': "the key 'architecture' is missing",
    "SAE.from_pretrained('gpt2-small-res-jb', 'x', revison='main')": "did you mean 'revision'",
    "SAE.load_from_disk('x', dtype='x')": "unknown dtype",
    "write_cache(TensorSource(rows(), epochs=1), 'c', dtype='int8')": 'unknown dtype',
    "ShardSource('x', device='gpu')": "device='gpu': unknown device",
    'SAETrainer(loop(), sae(), iter([]))': 'must be of type TrainingSAE',
    'train_together([t := trainer(), t])': 'two trainers have the same SAE',
    'train_together([SAETrainer(loop(), learner(), s := iter([rows(4)])), SAETrainer(loop(), learner(), s)])': 'two trainers have the same source of data',
    'SyntheticSource(d_in=0)': 'd_in=0: must be at least 1',
    'SyntheticSource(batch_size=0)': 'batch_size=0: must be at least 1',
    'trees(5, p_root=-1)': 'p_root=-1: must be at least 0',
    'random_dictionary(LISTS, 4, 2)': 'write torch.tensor(…)',
    'RowLatents(sae(), rows()*1j)': 'must be real numbers',
    **{f'sae().{f}({x})': says for f in ('encode', 'decode', 'forward') for x, says in {
        'None': '=None: must be a tensor', "'x'": "='x': must be a tensor", 'LISTS': 'must be a tensor; write torch.tensor(…)',
        'torch.ones(2, 4, dtype=torch.long)': 'must be floating-point numbers', 'torch.ones(2, 4, dtype=torch.bool)': 'must be floating-point numbers',
        'torch.ones(2, 4)*1j': 'must be real numbers', 'torch.ones(2, 5)': 'got (2, 5)', "torch.ones(2, 4, device='meta')": 'is on meta'}.items()}}


@pytest.mark.parametrize('call', NAMED)
def test_named(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SAEWorkbenchError) as e:
        entered(eval(call))
    assert NAMED[call] in str(e.value)


def test_what_is_cut_off_is_never_made():
    parents, shares = trees(5, branching=10, depth=30)
    assert parents.tolist() == [-1, 0, 0, 0, 0] and len(shares) == 5


def test_numpy_is_taken():
    x = rows().numpy()
    assert torch.equal(sae().eval().encode(x).isfinite(), torch.ones(len(x), D_SAE, dtype=torch.bool))
    assert recovered(x, x) == 1
    assert nearest_latents(sae(), torch.tensor([1, 2]), n=2)[0].shape == (2, 2)


@pytest.mark.parametrize('command', [c for c in COMMANDS if c not in ('demo', 'recipes')])
@pytest.mark.parametrize('words', [['--no-such-option', '1'], ['x'], ['x', 'y', 'z', '--limit', 'x'], ['']])
def test_commands(command, words, tmp_path, monkeypatch, capsys):
    "A mistake on the command line ends the program with a sentence"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        main([command, *words])
    said = capsys.readouterr()
    assert e.value.code not in (0, None) and 'Traceback' not in said.err + said.out and said.err + said.out
