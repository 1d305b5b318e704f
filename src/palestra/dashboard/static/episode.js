// The ids of an episode as colours, and its raw record to copy.
"use strict";

(() => {
  const RATIOS = [0.8, 0.98, 1.02, 1.25];
  const LOGPROBS = [-0.01, -0.1, -0.5, -1.5, -4];
  const LEGENDS = {
    mask: [["k-on", "trained on"], ["c", "context"]],
    logprob: [["q0", "≥ 99 %"], ["q1", "≥ 90 %"], ["q2", "≥ 61 %"], ["q3", "≥ 22 %"], ["q4", "≥ 1.8 %"], ["q5", "less likely"]],
    version: [],
    ratio: [["r0", "< 0.8"], ["r1", "< 0.98"], ["r2", "about 1"], ["r3", "> 1.02"], ["r4", "> 1.25"]],
  };

  function styleOf(token, mode) {
    if (token.version === null) return "c";
    if (mode === "mask") return token.trainable ? "k-on" : "c";
    if (mode === "logprob") return `q${LOGPROBS.filter((bound) => token.logprob < bound).length}`;
    if (mode === "version") return `v${token.version % 8}`;
    if (token.ratio === null) return "";
    return `r${RATIOS.filter((bound) => token.ratio > bound).length}`;
  }
  function words(token) {
    const parts = [`id ${token.id}`];
    if (token.version === null) parts.push("context");
    else {
      parts.push(`logprob ${token.logprob.toFixed(4)}`, `${Palestra.share(Math.exp(token.logprob))}`, `weights ${token.version}`);
      if (token.ratio !== null) parts.push(`MIS ratio ${token.ratio.toFixed(4)}`);
      parts.push(token.trainable ? "trained on" : "not trained on again");
    }
    return parts.join(" · ");
  }

  function watchTokens(article) {
    const details = article.querySelector("details.tokens");
    if (!details) return;
    const text = details.querySelector(".token-text"), legend = details.querySelector(".legend");
    const more = details.querySelector(".more"), said = details.querySelector(".token-said");
    const tokens = [];
    const versions = new Set();
    let next = { path: 0, offset: 0 }, busy = false, hasRatios = true;
    const mode = () => details.querySelector("input:checked").value;

    function colour() {
      const now = mode();
      tokens.forEach((token) => { token.span.className = styleOf(token, now); });
      const entries = now === "version" ? [...versions].sort((a, b) => a - b).slice(-12).map((v) => [`v${v % 8}`, `weights ${v}`]) : LEGENDS[now];
      legend.replaceChildren(...entries.map(([style, label]) => Palestra.element("span", { class: style }, label)));
      if (now === "ratio" && !hasRatios) legend.textContent = "this run did not keep the ratio of each id";
    }
    async function load() {
      if (busy || next === null) return;
      busy = true;
      try {
        const response = await fetch(`${article.dataset.tokens}&path=${next.path}&offset=${next.offset}`);
        if (!response.ok) { said.textContent = await response.text(); return; }
        const page = await response.json();
        if (page === null) { next = null; return; }
        if (page.offset === 0 && page.num_paths > 1) text.append(Palestra.element("b", {}, `\nbranch ${page.path + 1} of ${page.num_paths}\n`));
        hasRatios = page.has_ratios;
        const fragment = document.createDocumentFragment();
        page.ids.forEach((id, i) => {
          const span = document.createElement("span");
          span.textContent = page.texts ? page.texts[i] : ` ${id}`;
          const token = { id, span, trainable: page.trainable[i], logprob: page.logprobs[i], version: page.versions[i], ratio: page.ratios[i] };
          span.token = token;
          if (token.version !== null) versions.add(token.version);
          tokens.push(token);
          fragment.append(span);
        });
        text.append(fragment);
        const end = page.offset + page.ids.length;
        if (end < page.total) next = { path: page.path, offset: end };
        else next = page.path + 1 < page.num_paths ? { path: page.path + 1, offset: 0 } : null;
        details.dataset.loaded = String(tokens.length);
        colour();
      } finally {
        busy = false;
        more.hidden = next === null;
      }
    }
    details.addEventListener("toggle", () => { if (details.open && tokens.length === 0) load(); });
    details.addEventListener("change", colour);
    more.addEventListener("click", load);
    text.addEventListener("mouseover", (event) => { if (event.target.token) said.textContent = words(event.target.token); });
    if (details.open) load();
  }

  function watchCopy(article) {
    const button = article.querySelector(".copy"), said = article.querySelector(".actions .said");
    button.addEventListener("click", async () => {
      said.textContent = "";
      try {
        const response = await fetch(article.dataset.record);
        const record = await response.text();
        if (!response.ok) throw new Error("it is not stored yet");
        await navigator.clipboard.writeText(record);
        said.textContent = `copied ${Palestra.number(record.length)} characters`;
      } catch (error) { said.textContent = `not copied: ${error.message}`; }
    });
  }

  for (const article of document.querySelectorAll(".attempt")) { watchTokens(article); watchCopy(article); }
})();
