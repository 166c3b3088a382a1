"""What others wrote is data: it runs nothing, opens nothing outside its folder, and reaches a terminal as text. What we write holds no secret."""
import contextlib
import json
import platform
import socket
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sae_workbench import (SAE, ConfigError, LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoadError, LoggingConfig, SAEMetadata,
                           TopKSAE, TopKSAEConfig, TopKTrainingSAEConfig, model_card)
from sae_workbench.apps.cli import COMMANDS, command_line, run_command
from sae_workbench.apps.chooser import python_code, yaml_code
from sae_workbench.training.wandb_log import WandBLogger
from torch import nn

TOKEN = 'hf_' + 'SECRET'*5
HOME = '/home/alice/acme-secret-project'
HOST = 'laptop-of-alice-at-acme'


class LM(nn.Module):
    "A language model of two layers"
    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.layer, self.out = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40)

    def forward(self, tokens): return self.out(torch.relu(self.layer(self.embed(tokens))))


def texts() -> Dataset: return Dataset.from_dict({'tokens': torch.randint(0, 40, (60, 12), generator=torch.Generator().manual_seed(5)).tolist()})


def run_config(folder: Path, **options) -> LanguageModelSAERunnerConfig:
    usual = dict(
        model_name=f'{HOME}/model', dataset_path=f'{HOME}/patients.jsonl', hook_name='layer', context_size=12, training_tokens=16*64, train_batch_size_tokens=64,
        store_batch_size_prompts=4, n_batches_in_buffer=12, n_eval_batches=1, prepend_bos=False, verbose=False,
        checkpoint_path=str(folder/'checkpoints'), output_path=str(folder/'out'), n_checkpoints=2, save_final_checkpoint=True,
        model_from_pretrained_kwargs=dict(token=TOKEN, revision='main'))
    return LanguageModelSAERunnerConfig(sae=TopKTrainingSAEConfig(d_in=16, d_sae=32, k=4), **usual | options)


def holding(folder: Path, text: str) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file() and text.encode() in p.read_bytes())


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('trained')
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter('ignore')
        for module, name in (socket, 'gethostname'), (platform, 'node'): patch.setattr(module, name, lambda: HOST)
        LanguageModelSAETrainingRunner(run_config(folder), texts(), LM()).run()
    return folder


def test_a_token_is_in_no_file_of_a_run(trained):
    assert not holding(trained, TOKEN)
    assert json.loads((trained/'out'/'runner_cfg.json').read_text(encoding='utf-8'))['model_from_pretrained_kwargs'] == dict(revision='main')


def test_the_folder_of_the_sae_names_no_folder_of_the_author_nor_the_host(trained):
    assert not holding(trained/'out', 'alice') and not holding(trained/'out', str(trained))
    assert not holding(trained, HOST)
    metadata = SAE.load_from_disk(trained/'out').cfg.metadata
    assert (metadata.model_name, metadata.dataset_path) == ('model', 'patients.jsonl')


def test_a_run_goes_on_with_another_token_and_from_the_same_places(trained):
    "The checkpoints, which stay here, know the paths; a token is none of the options that decide the weights"
    assert holding(trained/'checkpoints', f'{HOME}/model')
    again = run_config(trained, model_from_pretrained_kwargs=dict(token=TOKEN[::-1], revision='main'), resume='auto')
    runner = LanguageModelSAETrainingRunner(again, texts(), LM())
    assert runner.resume() is runner.sae and runner.trainer.n_training_samples == 16*64
    latest = max((trained/'checkpoints').glob('*/final_*'))
    other = run_config(trained, model_name='/elsewhere/model', resume_from_checkpoint=str(latest), checkpoint_path=None, n_checkpoints=0, save_final_checkpoint=False)
    with pytest.raises(ConfigError, match='model_name'): LanguageModelSAETrainingRunner(other, texts(), LM()).run()


def secretive() -> TopKSAE:
    facts = SAEMetadata(model_name=f'{HOME}/model', dataset_path=f'{HOME}/patients.jsonl', tokenizer_name=f'{HOME}/model', hook_name='layer',
                        model_from_pretrained_kwargs=dict(token=TOKEN, cache_dir=f'{HOME}/cache'), note=f'see {HOME}/notes, password at {TOKEN}')
    return TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2, metadata=facts))


def test_nothing_that_is_given_away_names_a_secret_or_a_home(tmp_path):
    sae = secretive()
    sae.save_model(tmp_path/'saved')
    sae.save_pretrained(tmp_path/'shared')
    (tmp_path/'card.md').write_text(model_card({'': sae.cfg}, folder=tmp_path/'shared') + model_card({'x': sae.cfg}, repo='me/x'), encoding='utf-8')
    assert not holding(tmp_path, TOKEN) and not holding(tmp_path, 'alice') and not holding(tmp_path, str(tmp_path))
    assert sae.get_name() == 'sae_model_layer_16'
    assert SAE.load_from_disk(tmp_path/'saved').cfg.metadata.model_from_pretrained_kwargs == dict(cache_dir='cache')


def test_a_config_in_any_form_is_written_without_its_token(tmp_path):
    cfg = run_config(tmp_path)
    for name in ('a.yaml', 'a.json'): cfg.save(tmp_path/name)
    forms = [cfg.to_yaml(), cfg.to_json(), python_code(cfg), yaml_code(cfg), ' '.join(command_line(cfg)), *(p.read_text(encoding='utf-8') for p in tmp_path.iterdir())]
    assert all('revision' in form and TOKEN not in form for form in forms)
    assert cfg.model_from_pretrained_kwargs['token'] == TOKEN   # the run itself has it


def test_weights_and_biases_gets_neither_token_nor_paths(tmp_path, monkeypatch):
    class Artifact:
        def __init__(self, *args, **kwargs): self.files = []
        def add_file(self, path): self.files.append(Path(path).name)
    class Run:
        id, kept = 'a', None
        def log_artifact(self, artifact, **kwargs): Run.kept = artifact
    class Wandb:
        def init(self, config, **kwargs): self.config = config; return Run()
    wandb = Wandb()
    wandb.Artifact = Artifact
    monkeypatch.setitem(__import__('sys').modules, 'wandb', wandb)
    for name in ('cfg.json', '.lock', '.lock.json'): (tmp_path/name).write_text('', encoding='utf-8')
    logger = WandBLogger(LoggingConfig(), run_config(tmp_path).to_dict(), tmp_path)
    logger.on_start(None)
    assert TOKEN not in str(wandb.config) and HOME not in str(wandb.config) and str(tmp_path) not in str(wandb.config)
    logger.on_end(type('T', (), dict(sae=secretive())))
    assert Run.kept.files == ['cfg.json']


def test_a_link_out_of_a_folder_is_not_followed(tmp_path):
    "Who loads such an SAE and publishes it would publish a file of their own"
    sae = secretive()
    sae.save_model(tmp_path/'mine')
    sae.save_model(tmp_path/'theirs')
    for name in ('sae_weights.safetensors', 'cfg.json'):
        (tmp_path/'theirs'/name).unlink()
        (tmp_path/'theirs'/name).symlink_to(tmp_path/'mine'/name)
        for load in (SAE.load_from_disk, SAE.from_pretrained):
            with pytest.raises(LoadError, match='not followed'): load(tmp_path/'theirs')
        (tmp_path/'theirs'/name).unlink()
        sae.save_model(tmp_path/'theirs')
    (tmp_path/'link').symlink_to(tmp_path/'mine')
    assert SAE.load_from_disk(tmp_path/'link').cfg.d_in == SAE.from_pretrained(tmp_path/'link').cfg.d_in == 8


ORDER = '\x1b]0;title\x07\x1b[2J\u202e'


def test_no_order_to_the_terminal_leaves_a_command(tmp_path, capsys):
    "Escape bytes in names of files, keys of configs, names of tensors and in metadata"
    sae = secretive()
    sae.cfg.metadata.model_name = None
    sae.save_model(tmp_path/f'a{ORDER}')
    cfg = json.loads((tmp_path/f'a{ORDER}'/'cfg.json').read_text(encoding='utf-8'))
    (tmp_path/'keys').mkdir()
    (tmp_path/'keys'/'cfg.json').write_text(json.dumps(cfg | {f'k{ORDER}': 1}), encoding='utf-8')
    (tmp_path/'keys'/'sae_weights.safetensors').write_bytes((tmp_path/f'a{ORDER}'/'sae_weights.safetensors').read_bytes())
    (tmp_path/'named').mkdir()
    (tmp_path/'named'/'cfg.json').write_text(json.dumps(cfg | dict(architecture=f'topk{ORDER}')), encoding='utf-8')
    (tmp_path/'named'/'sae_weights.safetensors').write_bytes((tmp_path/f'a{ORDER}'/'sae_weights.safetensors').read_bytes())
    for args in (['dashboard', str(tmp_path/f'a{ORDER}')], ['evals', str(tmp_path/'keys')], ['dashboard', str(tmp_path/'keys')], ['evals', str(tmp_path/'named')],
                 ['convert', str(tmp_path/f'no{ORDER}'), str(tmp_path/'x')], ['search', f'nothing{ORDER}'], ['migrate', str(tmp_path/f'no{ORDER}')],
                 ['train', f'--no{ORDER}', '1'], ['train', '--config', str(tmp_path/f'no{ORDER}.yaml')]):
        with contextlib.suppress(SystemExit): run_command(COMMANDS[args[0]][0], args[1:])
        said = capsys.readouterr()
        text = said.out + said.err
        assert text and not {'\x1b', '\x07', '\u202e'} & set(text), (args, text)
        assert r'\x1b' in text or args[1] == str(tmp_path/'keys'), (args, text)
    said = []
    run_command(lambda: said.append(warnings.formatwarning(f'a warning{ORDER}', UserWarning, 'file', 1, '')))
    assert r'a warning\x1b' in said[0] and '\x1b' not in said[0]
    assert '\x1b' in warnings.formatwarning(ORDER, UserWarning, 'file', 1, '')   # only inside a command
