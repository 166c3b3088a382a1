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

  // Panels side by side, one below the other: each keeps its height and gets the whole width, and its title goes with it.
  function stacked(layout) {
    const names = Object.keys(layout).filter(k => /^[xy]axis\d*$/.test(k) && layout[k].domain);
    const panels = names.filter(k => k[0] === 'x').map(k => ({ x: k, y: (layout[k].anchor || 'y').replace('y', 'yaxis') }));
    const columns = [...new Set(panels.map(p => layout[p.x].domain[0]))].sort((a, b) => a - b);
    if (columns.length < 2 || panels.some(p => !layout[p.y]?.domain)) return null;
    const tops = [...new Set(panels.map(p => layout[p.y].domain[1]))].sort((a, b) => b - a);
    const n = columns.length*tops.length, gap = .35/n, share = (1 - gap*(n - 1))/n, changes = {}, places = [];
    for (const { x, y } of panels) {
      const [left, right] = layout[x].domain, [bottom, top] = layout[y].domain;
      const row = tops.indexOf(top)*columns.length + columns.indexOf(left), end = 1 - row*(share + gap);
      changes[x] = { ...layout[x], domain: [0, 1] };
      changes[y] = { ...layout[y], domain: [Math.max(0, end - share), end], ...(layout[y].showticklabels === false && { showticklabels: true }) };
      places.push({ left, right, bottom, top, to: end });
    }
    const moved = a => {
      const p = places.find(p => a.xref === 'paper' && a.yref === 'paper' && a.x >= p.left && a.x <= p.right && Math.abs(a.y - p.top) < .02);
      return p ? { ...a, x: .5, y: p.to } : a;
    };
    if (layout.annotations) changes.annotations = layout.annotations.map(moved);
    return { ...changes, height: columns.length*(layout.height || 450) };
  }

  function fitting(e, layout) {   // the titles of panels are annotations
    const below = narrow.matches && stacked(structuredClone(layout)), panels = { annotations: structuredClone(layout.annotations) };
    if (below) Object.assign(panels, below);
    else if (e.stacked) {   // back to what it was
      for (const k of Object.keys(layout)) if (/^[xy]axis/.test(k)) panels[k] = structuredClone(layout[k]);
      panels.height = layout.height || 450;
    }
    const scale = Math.min(1, Math.max(.6, e.clientWidth/900));
    const smaller = a => ({ ...a, font: { ...a.font, size: scale*(a.font?.size || 12) } });
    if (panels.annotations) panels.annotations = panels.annotations.map(smaller); else delete panels.annotations;
    if (below || e.stacked) Object.assign(panels, { autosize: true }), e.style.height = panels.height + 'px';
    e.stacked = !!below;
    return { template: themed(layout.template), ...panels };
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
