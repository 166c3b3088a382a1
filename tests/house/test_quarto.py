"""What can be checked of the site's and the workflow's YAML without Quarto and GitHub: keys that their public schemas know."""
import yaml
from sidebar import ROOT, website

# From Quarto's schema (src/resources/schema/definitions.yml, `base-website` and `navigation-item-object`, both closed), as far as one uses it.
WEBSITE = {'title', 'description', 'favicon', 'site-url', 'repo-url', 'repo-branch', 'repo-actions', 'search', 'navbar', 'sidebar', 'page-navigation',
           'page-footer', 'bread-crumbs', 'back-to-top-navigation', 'open-graph', 'image'} | {'llms-txt'}   # the last since Quarto 1.9
NAVBAR = {'title', 'logo', 'background', 'foreground', 'search', 'pinned', 'collapse', 'left', 'right'}
SIDEBAR = {'id', 'title', 'search', 'contents', 'style', 'background', 'border', 'alignment', 'collapse-level', 'pinned', 'header', 'footer'}
ITEM = {'aria-label', 'href', 'icon', 'menu', 'text', 'rel', 'target'}


def items(entries: list):
    "The entries of a navigation, menus included"
    for entry in entries:
        yield entry
        yield from items(entry.get('menu', []) if isinstance(entry, dict) else [])


def test_quarto_knows_the_keys():
    site = website()
    assert not set(site) - WEBSITE
    assert not set(site['navbar']) - NAVBAR
    assert not set(site['sidebar']) - SIDEBAR and site['sidebar']['style'] in ('docked', 'floating')
    assert set(site['repo-actions']) <= {'none', 'edit', 'source', 'issue'}
    entries = list(items(site['navbar']['left'] + site['navbar']['right']))
    assert len(entries) > 20 and not [e for e in entries if not isinstance(e, str) and set(e) - ITEM]
    assert not [e for e in site['sidebar']['contents'] if not isinstance(e, str) and set(e) - {'section', 'contents'}]


def test_files_of_the_navigation_are_there():
    site = website()
    names = [e if isinstance(e, str) else e.get('href', '') for e in items(site['navbar']['left'] + site['navbar']['right'])]
    assert not [n for n in names if n and not n.startswith('https://') and not (ROOT/n).is_file()]


def test_the_workflow_is_well_formed():
    flow = yaml.safe_load((ROOT/'.github'/'workflows'/'ci.yml').read_text(encoding='utf-8'))
    assert set(flow) == {'name', True, 'permissions', 'env', 'jobs'}   # YAML 1.1 reads `on` as true
    for job in flow['jobs'].values():
        assert {'runs-on', 'steps'} <= set(job) and set(job.get('needs', [])) <= set(flow['jobs'])
        assert all(('run' in step) != ('uses' in step) for step in job['steps'])
        assert all('@' in step['uses'] for step in job['steps'] if 'uses' in step)
