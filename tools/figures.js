// Draws the stored plotly figures of a page in the colours of its theme, and again when the theme changes.
(() => {
  const drawn = [], clear = 'rgba(0,0,0,0)';
  const textColor = () => getComputedStyle(document.body).color;
  const narrow = matchMedia('(max-width: 600px)'), dark = matchMedia('(prefers-color-scheme: dark)');
  let ink = null;   // the colour of what is drawn

  function themed(template) {   // what a figure sets itself, outside its template, is left alone
    const look = structuredClone(template || {}), layout = look.layout ||= {};
    const pale = alpha => ink.replace(/rgba?\(([^,]+,[^,]+,[^,)]+).*/, `rgba($1,${alpha})`);
    Object.assign(layout, { paper_bgcolor: clear, plot_bgcolor: clear, font: { ...layout.font, color: ink } });
    if (narrow.matches) Object.assign(layout, {
      title: { ...layout.title, font: { size: 13 } },
      legend: { orientation: 'h', yref: 'container', yanchor: 'bottom', y: 0, title: { text: '' } },
    });
    layout.modebar = { bgcolor: clear, color: pale(.4), activecolor: pale(.8) };
    for (const axis of ['xaxis', 'yaxis'])
      Object.assign(layout[axis] ||= {}, { gridcolor: pale(.14), zerolinecolor: pale(.3), linecolor: pale(.3) });
    for (const bars of [...(look.data?.bar || []), ...(look.data?.histogram || [])])
      bars.marker = { ...bars.marker, line: { width: 0 } };
    return look;
  }

  function fitting(e, { template, annotations }) {   // the titles of panels are annotations
    const scale = Math.min(1, Math.max(.6, e.clientWidth/900));
    const smaller = a => ({ ...a, font: { ...a.font, size: scale*(a.font?.size || 12) } });
    return { template: themed(template), ...(annotations && { annotations: annotations.map(smaller) }) };
  }

  window.drawFigure = (id, { data, layout, config }) => {
    const e = document.getElementById(id);
    ink ??= textColor();
    Plotly.newPlot(e, data, { ...layout, ...fitting(e, layout) }, { responsive: true, ...config });
    drawn.push([e, layout]);
  };

  const redraw = () => drawn.forEach(([e, layout]) => Plotly.relayout(e, fitting(e, layout)));
  const follow = () => { if (ink !== (ink = textColor())) redraw(); };

  const changes = new MutationObserver(() => requestAnimationFrame(follow));
  addEventListener('load', () => {
    follow();
    for (const e of [document.documentElement, document.body]) changes.observe(e, { attributes: true });
    changes.observe(document.head, { attributes: true, subtree: true });   // the themes are style sheets that are switched
    dark.addEventListener('change', follow);
    narrow.addEventListener('change', redraw);
  });
})();
