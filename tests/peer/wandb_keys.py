"""What a library with the v6 API sends to W&B: the names, for every architecture and for the evaluation of a model.

    PEER/bin/python tests/peer/wandb_keys.py [FILE]

writes `tests/fixtures/v6_wandb_keys.json` (in an environment that has sae-lens); `tests/v6/test_v6_wandb.py` asks ours for the same.
"""
import importlib, json, logging, sys, tempfile, warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
import torch

SIZE = dict(d_in=8, d_sae=16)
SAES = dict(Standard={}, Gated={}, TopK=dict(k=2), AbsTopK=dict(k=2), BatchTopK=dict(k=2), JumpReLU={},
            JumpReLU_tanh=dict(jumprelu_sparsity_loss_mode='tanh', pre_act_loss_coefficient=1e-3),
            JumpReLU_quadratic=dict(jumprelu_sparsity_loss_mode='quadratic', target_l0=4), MatryoshkaBatchTopK=dict(k=2, matryoshka_widths=[8, 16]),
            MatchingPursuit=dict(residual_threshold=.1, max_iterations=4, decoder_init_norm=1.))

class Wandb(ModuleType):
    "A W&B that keeps what it is sent, as the package and as its run"
    id, project = 'abc', 'mine'
    def __init__(self):
        super().__init__('wandb')
        self.__spec__, self.run, self.Histogram, self.sent, self.artifacts, self.files = ModuleSpec('wandb', None), None, list, [], [], []
    def init(self, **options): return self
    def log(self, metrics, step=None): self.sent.append(metrics)
    def finish(self, exit_code=0): pass
    def log_artifact(self, artifact, aliases=None):
        self.artifacts.append((artifact.name, aliases))
        self.files.append(artifact.files)
    class Artifact:
        def __init__(self, name, type, metadata=None): self.name, self.files = name, []
        def add_file(self, file): self.files.append(Path(file).name)
    def keys(self):
        "Names, and inside a dict the names behind a slash; what was sent is forgotten"
        flat = lambda k, v: [f'{k}/{n}' for n in v] if isinstance(v, dict) else [k]
        found = sorted({name for metrics in self.sent for k, v in metrics.items() for name in flat(k, v)})
        self.sent.clear()
        return found

def trained(lib, name, logger):
    "Train an SAE on numbers"
    config = importlib.import_module(f'{lib.__name__}.config')
    arch, options = name.split('_')[0], SAES[name]
    sae = getattr(lib, f'{arch}TrainingSAE')(getattr(lib, f'{arch}TrainingSAEConfig')(**SIZE, **options))
    cfg = config.SAETrainerConfig(**dict(dict(
        total_training_samples=64, train_batch_size_samples=8, device='cpu', lr=1e-3, lr_end=1e-3, lr_scheduler_name='constant', lr_warm_up_steps=0,
        adam_beta1=.9, adam_beta2=.999, lr_decay_steps=0, n_restart_cycles=1, autocast=False, dead_feature_window=4, feature_sampling_window=4,
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, logger=logger)))
    torch.manual_seed(0)
    lib.SAETrainer(cfg=cfg, sae=sae, data_provider=iter([torch.randn(8, 8) for _ in range(9)])).fit()

def evaluated(lib, logger, folder):
    "Train an SAE on a small model, which is evaluated meanwhile"
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=16)).save_pretrained(folder/'model')
    vocab = Tokenizer(models.WordLevel({str(i): i for i in range(32)}, unk_token='0'))
    PreTrainedTokenizerFast(tokenizer_object=vocab, bos_token='1', eos_token='1').save_pretrained(folder/'model')
    rows = Dataset.from_dict(dict(input_ids=[[1, *((i*j) % 31 + 1 for j in range(15))] for i in range(200)]))
    cfg = lib.LanguageModelSAERunnerConfig(
        model_class_name='AutoModelForCausalLM', model_name=str(folder/'model'), hook_name='transformer.h.0', is_dataset_tokenized=True,
        sae=lib.TopKTrainingSAEConfig(k=2, **SIZE), training_tokens=512, train_batch_size_tokens=32, context_size=8, store_batch_size_prompts=4,
        n_batches_in_buffer=32, n_eval_batches=1, eval_batch_size_prompts=2, feature_sampling_window=4, device='cpu', logger=logger,
        checkpoint_path=None, output_path=str(folder/'out'))
    lib.LanguageModelSAETrainingRunner(cfg, override_dataset=rows).run()

def on_synthetic_data(lib, logger, folder):
    "Train an SAE on a synthetic model, with evaluations during the run and at its end"
    synthetic = importlib.import_module(f'{lib.__name__}.synthetic')
    cfg = synthetic.SyntheticSAERunnerConfig(
        synthetic_model=synthetic.SyntheticModelConfig(num_features=16, hidden_dim=8), sae=lib.TopKTrainingSAEConfig(k=2, **SIZE), training_samples=64,
        batch_size=8, eval_frequency=2, eval_samples=64, feature_sampling_window=4, device='cpu', logger=logger, output_path=str(folder/'out'))
    synthetic.SyntheticSAERunner(cfg).run()

def sent(lib, wandb):
    "The keys by architecture, those of a run with evaluations, and those of a run on synthetic data"
    logger = lib.LoggingConfig(log_to_wandb=True, wandb_project='mine', wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    found = {}
    for name in SAES:
        trained(lib, name, logger)
        found[name] = wandb.keys()
    for name, run in dict(evaluation=evaluated, synthetic=on_synthetic_data).items():
        with tempfile.TemporaryDirectory() as folder: run(lib, logger, Path(folder))
        found[name] = wandb.keys()
    return found

if __name__ == '__main__':
    warnings.simplefilter('ignore')
    logging.disable()
    sys.modules['wandb'] = wandb = Wandb()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent/'fixtures'/'v6_wandb_keys.json')
    out.write_text(json.dumps(sent(importlib.import_module('sae_lens'), wandb), indent=1) + '\n', encoding='utf-8')
