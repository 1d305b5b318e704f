// A list of any length: only the rows that can be seen exist, fetched a page at a time.
"use strict";

(() => {
  const ROW = 26, HEAD = 30, PAGE = 200, SPARE = 12, MAX_PAGES = 40;
  const MAX_HEIGHT = 16_000_000; // browsers end somewhere beyond
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const spacer = document.getElementById("spacer");
  const count = document.getElementById("count");
  const newer = document.getElementById("newer");
  const run = form.dataset.run;
  const FIELDS = ["of", "task", "outcome", "reward", "step", "sort"];
  let pages = new Map();
  let total = 0, revision = -1, generation = 0, marked = -1;
  const shown = new Map();

  const OUTCOMES = Object.fromEntries([...form.elements.outcome.options].map((option) => [option.value, option.textContent]));

  function asked() {
    const query = new URLSearchParams();
    for (const name of FIELDS) if (form.elements[name].value) query.set(name, form.elements[name].value);
    return query;
  }
  function link(id) {
    return `${run}/episode?of=${encodeURIComponent(form.elements.of.value)}&id=${encodeURIComponent(id)}`;
  }

  async function load(page) {
    if (pages.has(page)) return;
    pages.set(page, null);
    const mine = generation, query = asked();
    query.set("offset", String(page * PAGE));
    query.set("limit", String(PAGE));
    try {
      const response = await fetch(`${run}/episodes.json?${query}`);
      if (!response.ok) { count.textContent = await response.text(); return; }
      const found = await response.json();
      if (mine !== generation) return;
      pages.set(page, found.rows);
      while (pages.size > MAX_PAGES) pages.delete(pages.keys().next().value);
      take(found);
      draw();
    } catch { if (mine === generation) pages.delete(page); }
  }
  function take(found) {
    total = found.total;
    if (revision < 0) revision = found.revision;
    spacer.style.height = `${Math.min(MAX_HEIGHT, total * ROW)}px`;
    const solved = found.graded ? `, ${Palestra.count(found.solved)} of ${Palestra.count(found.graded)} graded solved (${Palestra.share(found.solved / found.graded)})` : "";
    count.textContent = `${Palestra.count(total)} episodes${solved}`;
    list.dataset.total = String(total);
  }

  function fill(row, at) {
    const one = pages.get(Math.floor(at / PAGE))?.[at % PAGE];
    row.classList.toggle("pending", !one);
    row.toggleAttribute("data-marked", at === marked);
    row.style.transform = `translateY(${at * ROW}px)`;
    if (!one || row.dataset.id === one[0]) return;
    const [id, task, step, outcome, reward, turns, seconds, versions, kept, reason, ended, ended_s] = one;
    row.dataset.id = id;
    row.href = link(id);
    const cells = row.children;
    const texts = [
      step ?? "–", task, id, OUTCOMES[outcome] ?? outcome, reward === null ? "–" : Palestra.number(reward), turns ?? "–", Palestra.seconds(seconds),
      versions.join(", ") || "–", kept === null ? "–" : kept ? "yes" : `no, ${(reason ?? "").replace("_", " ")}`, ended, Palestra.clock(ended_s),
    ];
    texts.forEach((text, i) => { cells[i].textContent = text; });
    cells[1].title = task;
    cells[3].className = `outcome ${OUTCOMES[outcome] ? outcome : ""}`;
  }
  function makeRow() {
    const row = Palestra.element("a", { class: "row", role: "row", tabindex: "-1" });
    ["num", "", "", "", "num", "num", "num", "num", "", "", "num"].forEach((style) => row.append(Palestra.element("span", style ? { class: style } : {})));
    return row;
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(total, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    const spare = [];
    for (const [at, row] of shown) if (at < first || at >= last) { spare.push(row); shown.delete(at); }
    for (let at = first; at < last; at++) {
      if (!shown.has(at)) {
        const row = spare.pop() ?? makeRow();
        if (!row.parentNode) spacer.append(row);
        shown.set(at, row);
      }
      fill(shown.get(at), at);
    }
    for (const row of spare) row.remove();
    for (let page = Math.floor(first / PAGE); page <= Math.floor(Math.max(first, last - 1) / PAGE); page++) load(page);
  }

  function restart() {
    generation++;
    pages = new Map();
    revision = -1;
    marked = -1;
    newer.hidden = true;
    for (const row of shown.values()) row.remove();
    shown.clear();
    list.scrollTop = 0;
    const query = asked();
    history.replaceState(null, "", `${location.pathname}?${query}`);
    load(0);
  }

  let waiting = 0;
  const soon = (delay) => { clearTimeout(waiting); waiting = setTimeout(restart, delay); };
  form.addEventListener("input", (event) => soon(event.target.tagName === "SELECT" ? 0 : 160));
  form.addEventListener("submit", (event) => { event.preventDefault(); soon(0); });
  newer.addEventListener("click", restart);
  let due = false;
  list.addEventListener("scroll", () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; draw(); });
  }, { passive: true });
  new ResizeObserver(draw).observe(list);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, dialog")) return;
    const moves = { j: 1, k: -1, ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 };
    if (event.key in moves && total > 0) {
      event.preventDefault();
      marked = Math.max(0, Math.min(total - 1, marked + moves[event.key]));
      const top = marked * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight - HEAD) list.scrollTop = top + ROW + HEAD - list.clientHeight;
      draw();
    } else if (event.key === "Enter" && marked >= 0 && shown.get(marked)?.href) {
      event.preventDefault();
      location.href = shown.get(marked).href;
    }
  });

  // As the address says, so that a filtered list can be shared and come back to.
  for (const [name, value] of new URLSearchParams(location.search)) if (FIELDS.includes(name)) form.elements[name].value = value;
  restart();
  Palestra.poll(2000, async () => {
    if (revision < 0 || pages.size === 0) return;
    const query = asked();
    query.set("since", String(revision));
    query.set("limit", "0");
    const response = await fetch(`${run}/episodes.json?${query}`);
    if (response.status !== 200) return;
    const found = await response.json();
    revision = found.revision;
    if (found.total === total) return;
    // Nothing moves under the eyes of somebody who has scrolled.
    if (list.scrollTop === 0 && marked < 0) restart(); else newer.hidden = false;
  });
})();
