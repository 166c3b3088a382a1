// What the search of the site shows first. Fuse, which smalldocs asks, compares letters: "own" is in "down" too. People type words.
// A section is found by the words of its heading, then of its text; a page comes before its sections, and no page fills the list alone.
// Where no heading has the words, Fuse is asked too: it forgives mistypings.
(() => {
  const wordsOf = text => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
  const escaped = word => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const EACH = 2, HEADING = 4;   // sections of a page before those of others; the least that words of a heading score

  class Word {
    constructor(word) {
      const before = '(?<![\\p{L}\\p{N}_])', after = '(?![\\p{L}\\p{N}_])';
      this.whole = RegExp(before + escaped(word) + after, 'iu');
      this.start = RegExp(before + escaped(word), 'iu');
      this.inside = RegExp(escaped(word), 'iu');
    }
    weight(heading, text) {
      if (this.whole.test(heading)) return 10;
      if (this.start.test(heading)) return 7;
      if (this.inside.test(heading)) return 4;
      return this.whole.test(text) ? 2 : this.start.test(text) ? 1 : 0;
    }
  }

  function score(entry, words, query) {
    const heading = `${entry.title} ${entry.section}`, weights = words.map(w => w.weight(heading, entry.text));
    const found = weights.filter(Boolean).length/words.length, name = wordsOf(entry.section || entry.title).join(' ');
    let sum = weights.reduce((a, b) => a + b, 0);
    if (name === query) sum += 12*words.length + 12;
    else if (name.startsWith(query + ' ')) sum += 8*words.length;
    if (/\/(tutorials|guides)\/(?!glossary)/.test(entry.href)) sum *= 1.2;
    if (!entry.section) sum *= 2;   // the page itself
    return sum*found*found;
  }

  function excerpt(text, words) {   // from a little before the place where most of the words stand
    const places = words.flatMap(w => [...text.matchAll(RegExp(w.whole, 'giu'))].map(m => m.index));
    const near = i => words.filter(w => w.whole.test(text.slice(i, i + 120))).length;
    const best = places.slice(0, 40).reduce((a, b) => near(b) > near(a) ? b : a, places[0] ?? 0);
    const from = best < 50 ? 0 : text.indexOf(' ', best - 50) + 1;
    return (from ? '…' : '') + text.slice(from, from + 260);
  }

  function mixed(hits) {   // at most EACH of a page, the others after all
    const seen = {}, first = [], later = [];
    for (const hit of hits) {
      const page = hit.item.href.split('#')[0];
      ((seen[page] = (seen[page] || 0) + 1) <= EACH ? first : later).push(hit);
    }
    return first.concat(later);
  }

  const Letters = window.Fuse;
  window.Fuse = class extends Letters {
    constructor(entries, options) { super(entries, options); this.entries = entries; }

    search(typed, { limit = 20 } = {}) {
      const parts = wordsOf(typed), words = parts.map(w => new Word(w)), query = parts.join(' ');
      if (!words.length) return [];
      const hits = this.entries.map(item => ({ item, score: score(item, words, query) })).filter(h => h.score);
      const found = mixed(hits.sort((a, b) => b.score - a.score)).slice(0, limit);
      if (!(found[0]?.score >= HEADING)) {
        const known = new Set(found.map(h => h.item));
        found.push(...super.search(typed, { limit }).filter(h => !known.has(h.item)));
      }
      return found.slice(0, limit).map(h => ({ ...h, item: { ...h.item, text: excerpt(h.item.text, words) } }));
    }
  };
})();
