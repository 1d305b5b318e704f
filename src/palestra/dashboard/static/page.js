// What every page has: the switch of schemes, keys, filters of plain tables, numbers in words.
"use strict";

const Palestra = {
  number(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 10000) return Palestra.count(value);
    if (size >= 100) return value.toFixed(0);
    if (size >= 0.0001) return String(Number(value.toPrecision(3)));
    return value.toExponential(1).replace("e-0", "e-");
  },
  count(value) {
    return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  },
  share(value) {
    return value === null || value === undefined ? "–" : `${Palestra.number(Number((100 * value).toPrecision(3)))} %`;
  },
  seconds(value) {
    if (value === null || value === undefined) return "–";
    if (value < 1) return `${Math.round(1000 * value)} ms`;
    if (value < 59.95) return `${value.toFixed(1)} s`;
    const minutes = Math.floor(Math.round(value) / 60);
    if (minutes < 60) return `${minutes} min ${Math.round(value) % 60} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  },
  bytes(value) {
    return value === null || value === undefined ? "–" : `${(value / 2 ** 30).toFixed(1)} GiB`;
  },
  clock(seconds) {
    return seconds ? new Date(1000 * seconds).toISOString().slice(0, 19).replace("T", " ") : "–";
  },
  value(value, unit) {
    if (unit === "share") return Palestra.share(value);
    if (unit === "seconds") return Palestra.seconds(value);
    if (unit === "ratio") return value === null ? "–" : value.toFixed(4);
    return Palestra.number(value);
  },
  element(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  },
  // Ask again and again, never while nobody looks; one at a time.
  poll(everyMs, ask) {
    let timer = null;
    const turn = async () => {
      timer = null;
      if (!document.hidden) {
        try { await ask(); } catch { /* the viewer may be gone for a moment */ }
      }
      timer = setTimeout(turn, everyMs);
    };
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && timer !== null) { clearTimeout(timer); turn(); }
    });
    turn();
  },
};

(() => {
  const root = document.documentElement;
  const themeButton = document.getElementById("theme");
  const dialog = document.getElementById("keys");

  function showTheme() {
    themeButton.textContent = root.dataset.theme || "auto";
  }
  function turnTheme() {
    const next = { undefined: "dark", dark: "light", light: undefined }[root.dataset.theme];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    try {
      if (next) localStorage.setItem("palestra-theme", next); else localStorage.removeItem("palestra-theme");
    } catch { /* not kept */ }
    showTheme();
    document.dispatchEvent(new CustomEvent("palestra-theme"));
  }
  themeButton.addEventListener("click", turnTheme);
  document.getElementById("help").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  showTheme();

  // Filters of tables that are wholly there.
  const filter = document.getElementById("filter");
  if (filter && filter.dataset.rows) {
    const apply = () => {
      const wanted = filter.value.toLowerCase();
      for (const row of document.querySelectorAll(filter.dataset.rows)) {
        row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
      }
    };
    filter.addEventListener("input", apply);
    document.addEventListener("palestra-rows", apply);
  }

  // Tables that the server draws, drawn again; a document of its own runs no script.
  const table = document.querySelector("[data-refresh]");
  if (table) {
    Palestra.poll(Number(table.dataset.refresh), async () => {
      const response = await fetch(location.href);
      if (!response.ok) return;
      const found = new DOMParser().parseFromString(await response.text(), "text/html").getElementById(table.id);
      if (!found || found.textContent === table.textContent || table.querySelector("[data-marked]")) return;
      table.replaceChildren(...found.childNodes);
      document.dispatchEvent(new CustomEvent("palestra-rows"));
    });
  }

  // Marking rows and turns.
  let marked = null;
  function items() {
    return [...document.querySelectorAll("[data-nav]")].filter((item) => !item.hidden);
  }
  function mark(step) {
    const all = items();
    if (all.length === 0) return false;
    const at = marked ? all.indexOf(marked) : -1;
    const next = all[Math.max(0, Math.min(all.length - 1, at + step))];
    if (marked) delete marked.dataset.marked;
    marked = next;
    marked.dataset.marked = "";
    marked.scrollIntoView({ block: marked.tagName === "TR" ? "nearest" : "start" });
    return true;
  }
  function follow(selector) {
    const link = document.querySelector(selector);
    if (link) location.href = link.href;
    return Boolean(link);
  }

  const KEYS = {
    j: () => mark(1),
    k: () => mark(-1),
    n: () => follow("a[rel=next]"),
    p: () => follow("a[rel=prev]"),
    b: () => follow("a[data-beside]"),
    u: () => follow("a[rel=up]") || follow("a.run"),
    t: () => { turnTheme(); return true; },
    "?": () => { dialog.showModal(); return true; },
    "/": () => { if (filter) { filter.focus(); filter.select?.(); } return Boolean(filter); },
    Enter: () => {
      const link = marked?.querySelector("a[href]");
      if (link) location.href = link.href;
      return Boolean(link);
    },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const within = event.target instanceof Element ? event.target : document.body;
    if (within.closest("input, select, textarea")) {
      if (event.key === "Escape") within.blur();
      return;
    }
    if (event.defaultPrevented || dialog.open) return;
    if (event.key === "Enter" && within.closest("a, button, summary")) return;
    const page = /^[1-9]$/.test(event.key) ? document.querySelector(`a[data-key="${event.key}"]`) : null;
    if (page) { location.href = page.href; return; }
    if (KEYS[event.key]?.()) event.preventDefault();
  });
})();
