"""Write the registry of published SAEs, compactly, into the package.

    python tools/releases.py pretrained_releases.json

The source maps each release to `repo_id`, `model`, `format`, `config_overrides` and `saes`, a list of `id`, `path` and
facts. Written are columns instead of rows, paths only where they are not the ids behind a prefix, and all of it gzipped.
"""
import gzip
import json
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent/'sae_workbench'/'formats'/'releases.json.gz'
FACTS = ('l0', 'neuronpedia', 'norm_scaling_factor', 'variance_explained')


def paths(ids: list[str], paths: list[str]) -> str | list[str]:
    "The prefix that makes ids into paths, or the paths where there is none"
    prefix = paths[0].removesuffix(ids[0])
    return prefix if [prefix + i for i in ids] == paths else paths


def columns(release: dict) -> dict:
    "A release with its SAEs as columns"
    saes = release['saes']
    ids = [s['id'] for s in saes]
    out = {k: release[k] for k in ('repo_id', 'model', 'format', 'config_overrides') if release.get(k)}
    out |= dict(id=ids, path=paths(ids, [str(s['path']) for s in saes]))
    unknown = {k for s in saes for k in s} - {'id', 'path', *FACTS}
    if unknown or len(set(ids)) != len(ids):
        raise SystemExit(f"{release['repo_id']}: unknown facts {sorted(unknown)}, or an id that is there twice")
    return out | {k: [s.get(k) for s in saes] for k in FACTS if any(k in s for s in saes)}


def main(source: str) -> None:
    releases = json.loads(Path(source).read_text(encoding='utf-8'))
    text = json.dumps({name: columns(r) for name, r in releases.items()}, separators=(',', ':'))
    OUT.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{OUT}: {len(releases)} releases, {sum(len(r['saes']) for r in releases.values())} SAEs, {OUT.stat().st_size} bytes")


if __name__ == '__main__':
    main(sys.argv[1])
