"""Load SAEs saved by sae_workbench with sae-lens and compare (run in an environment that has sae-lens):

    PEER/bin/python tests/peer/check_files.py FOLDER

Every subfolder of FOLDER holds `sae/` (what was saved) and `expected.safetensors` (an input and our outputs for it).
"""
import logging, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from sae_lens import SAE, TrainingSAE
from measure import checkpoint, flat, use

def differences(folder):
    "What the peer gives otherwise than we do, as lines of text"
    expected = load_file(folder/'expected.safetensors')
    got = flat(use(SAE.load_from_disk(folder/'sae'), expected.pop('x')))
    if any(k.startswith('training.') for k in expected): got |= flat(dict(training=checkpoint(TrainingSAE.load_from_disk(folder/'sae'))))
    yield from (f'only one has {k}' for k in expected.keys() ^ got.keys())
    for k in expected.keys() & got.keys():
        try: torch.testing.assert_close(got[k], expected[k], atol=1e-5, rtol=1e-5)
        except AssertionError as e: yield f'{k}: {e}'

if __name__ == '__main__':
    logging.disable(logging.WARNING)
    folders = sorted(p.parent for p in Path(sys.argv[1]).glob('*/expected.safetensors'))
    wrong = [f'{f.name}: {d}' for f in folders for d in differences(f)]
    print('\n'.join(wrong) or f'{len(folders)} SAEs are equal')
    sys.exit(bool(wrong) or not folders)
