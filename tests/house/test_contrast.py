"""What the library shows in HTML is legible on light and on dark pages: a contrast of 4.5, as WCAG 2 asks for at level AA."""
import re

import pytest

from sae_workbench.analysis.document import FILE_STYLE
from sae_workbench.analysis.examples import shaded
from sae_workbench.apps.controls import _TOKENS
from sae_workbench.apps.widgets import WIDGET_STYLE

PAGES = {   # paper and ink
    'the site': ('#ffffff', '#373a3c'), 'the site, dark': ('#222222', '#ffffff'),
    'JupyterLab': ('#ffffff', '#212121'), 'JupyterLab, dark': ('#111111', '#e0e0e0'),
    'VS Code, dark': ('#1f1f1f', '#cccccc'), 'GitHub, dark': ('#0d1117', '#e6edf3'),
}


def rgb(color: str) -> list[int]:
    digits = color.lstrip('#')
    return [int(digits[i:i + 2], 16) for i in (0, 2, 4)] if len(digits) == 6 else [17*int(d, 16) for d in digits[:3]]


def over(color: list[float], share: float, below: list[float]) -> list[float]: return [share*c + (1 - share)*b for c, b in zip(color, below)]


def light(color: list[float]) -> float:
    "Relative luminance"
    r, g, b = (v/12.92 if (v := c/255) <= .03928 else ((v + .055)/1.055)**2.4 for c in color)
    return .2126*r + .7152*g + .0722*b


def contrast(a: list[float], b: list[float]) -> float:
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + .05)/(low + .05)


def test_contrast_of_known_colours():
    assert contrast(rgb('#000'), rgb('#ffffff')) == pytest.approx(21)
    assert contrast(rgb('#777777'), rgb('#fff')) == pytest.approx(4.48, abs=.01)


@pytest.mark.parametrize('page', PAGES)
def test_shaded_tokens(page):
    paper, ink = map(rgb, PAGES[page])
    ratios = {}
    for value in (v/50 for v in range(-50, 51) if v):
        *color, share = map(float, re.findall(r'[\d.]+', shaded(value, 1.)))
        ratios[value] = contrast(ink, over(color, share, paper))
    assert not {value: ratio for value, ratio in ratios.items() if ratio < 4.5}


def test_widgets_shade_tokens_alike():
    base, slope = map(float, re.search(r'grade = ([\d.]+) \+ ([\d.]+)\*', _TOKENS).groups())
    above, below = re.search(r"shade > 0 \? '([\d,]+)' : '([\d,]+)'", _TOKENS).groups()
    for shade, color in ((.4, above), (-1., below)):
        assert shaded(shade, 1.) == f'background:rgba({color},{base + slope*abs(shade):.2f});'


@pytest.mark.parametrize('page', PAGES)
def test_warnings_of_widgets(page):
    paper, ink = map(rgb, PAGES[page])
    color, share = re.search(r'sae-bad\{color:color-mix\(in srgb,(#\w+) (\d+)%,currentColor\)', WIDGET_STYLE).groups()
    assert contrast(over(rgb(color), int(share)/100, ink), paper) >= 4.5


@pytest.mark.parametrize('dark', [False, True])
def test_dashboard(dark):
    colors = dict(re.findall(r'--(\w+):(#\w+)', FILE_STYLE.partition('@media')[0]))
    if dark:
        colors |= dict(re.findall(r'--(\w+):(#\w+)', re.search(r'prefers-color-scheme:dark\)\{(.*?)\}', FILE_STYLE)[1]))
    papers = {name: rgb(colors[name]) for name in ('bg', 'side')}
    papers['on'] = over(rgb(colors['on'][:7]), int(colors['on'][7:], 16)/255, papers['side'])
    inks = {'fg': rgb(colors['fg']), 'link': rgb(colors['link'])}
    inks['dim'] = over(inks['fg'], float(re.search(r'\.dim\{opacity:([.\d]+)', FILE_STYLE)[1]), papers['bg'])
    faint = {(ink, paper): contrast(inks[ink], papers[paper]) for ink in inks for paper in papers}
    assert not {pair: ratio for pair, ratio in faint.items() if ratio < 4.5}
