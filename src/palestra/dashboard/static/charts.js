// Panels over the steps: one cursor and one zoom for all of them.
"use strict";

(() => {
  const SMOOTH_FROM = 12;
  const MAX_DOTS = 600;
  const BARS_UP_TO = 16;
  const HEIGHT = 150, TALL = 340;
  const place = document.getElementById("charts");
  const cursorWords = document.getElementById("cursor");
  const sync = uPlot.sync("steps");
  const drawn = new Map();
  let revision = -1;
  let range = null;

  // Canvases know no variables of style sheets.
  const probe = Palestra.element("i", { hidden: "" });
  document.body.append(probe);
  function colour(style) {
    probe.className = `fill-${style}`;
    return getComputedStyle(probe).backgroundColor;
  }
  function variable(name) {
    probe.className = "";
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  }
  function faint(rgb, alpha) {
    const parts = rgb.match(/[\d.]+/g) || [0, 0, 0];
    return `rgba(${parts[0]}, ${parts[1]}, ${parts[2]}, ${alpha})`;
  }

  function smoothed(values) {
    const known = values.map((value, at) => [at, value]).filter(([, value]) => value !== null);
    const reach = Math.max(1, Math.floor(known.length / 20));
    const out = values.map(() => null);
    known.forEach(([at], i) => {
      const near = Math.min(reach, i, known.length - 1 - i);
      let sum = 0;
      for (let j = i - near; j <= i + near; j++) sum += known[j][1];
      out[at] = sum / (2 * near + 1);
    });
    return out;
  }

  // A band between the ends of intervals, or whiskers where there are few of them.
  function drawIntervals(lines) {
    return (u) => {
      const context = u.ctx;
      context.save();
      context.beginPath();
      context.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
      context.clip();
      for (const line of lines) {
        if (!line.low) continue;
        const at = (i, values) => [u.valToPos(u.data[0][i], "x", true), u.valToPos(values[i], "y", true)];
        if (line.sparse) {
          context.strokeStyle = faint(colour(line.style), 0.6);
          context.lineWidth = 1.5 * devicePixelRatio;
          context.beginPath();
          line.low.forEach((low, i) => {
            if (low === null) return;
            context.moveTo(...at(i, line.low));
            context.lineTo(...at(i, line.high));
          });
          context.stroke();
        } else {
          const known = line.low.map((low, i) => (low === null ? -1 : i)).filter((i) => i >= 0);
          if (known.length < 2) continue;
          context.fillStyle = faint(colour(line.style), 0.11);
          context.beginPath();
          known.forEach((i, n) => (n ? context.lineTo(...at(i, line.high)) : context.moveTo(...at(i, line.high))));
          known.reverse().forEach((i) => context.lineTo(...at(i, line.low)));
          context.fill();
        }
      }
      context.restore();
    };
  }

  function plan(panel) {
    const data = [panel.steps];
    const series = [{}];
    const few = panel.steps.length <= BARS_UP_TO;
    if (panel.stack) {
      const sums = panel.steps.map(() => 0);
      const layers = panel.lines.map((line) => {
        line.values.forEach((value, i) => { sums[i] += value ?? 0; });
        return { line, values: [...sums] };
      });
      // The highest first: lower ones are laid over it.
      for (const { line, values } of layers.reverse()) {
        data.push(values);
        series.push({
          fill: colour(line.style), stroke: colour(line.style), width: 0, points: { show: false },
          ...(few ? { paths: uPlot.paths.bars({ size: [0.72, 40] }) } : {}),
        });
      }
      return { data, series };
    }
    for (const line of panel.lines) {
      const stroke = colour(line.style);
      const count = line.values.filter((value) => value !== null).length;
      const smooth = !line.sparse && count >= SMOOTH_FROM;
      if (smooth && count <= MAX_DOTS) {
        data.push(line.values);
        series.push({ stroke, paths: () => null, points: { show: true, size: 4, width: 0, fill: faint(stroke, 0.42) } });
      }
      data.push(smooth ? smoothed(line.values) : line.values);
      series.push({
        stroke, width: 2, spanGaps: true,
        ...(line.sparse ? { dash: [6, 3] } : {}),
        points: smooth ? { show: false } : { show: true, size: 6, width: 0, fill: stroke },
      });
    }
    return { data, series };
  }

  function bounds(panel) {
    return (u, low, high) => {
      const wanted = panel.stack ? [0] : [panel.low, panel.reference].filter((v) => v !== null && v !== undefined);
      for (const line of panel.lines) if (line.sparse) wanted.push(...line.high.filter((v) => v !== null));
      low = Math.min(low ?? 0, ...wanted);
      high = Math.max(high ?? 1, ...wanted);
      if (panel.stack && panel.unit === "share") return [0, 1];
      if (high - low < 1e-12) high = low + (Math.abs(low) * 0.1 || 0.01);
      const room = (high - low) * 0.06;
      return [wanted.includes(low) ? low : low - room, high + room];
    };
  }

  function readout(element, panel, at) {
    const parts = panel.lines.map((line) => {
      let i = at;
      if (i === null || i === undefined) {
        i = line.values.length - 1;
        while (i > 0 && line.values[i] === null) i--;
      } else if (line.sparse) {
        while (i > 0 && line.values[i] === null) i--;
      }
      let words = `${line.label} ${Palestra.value(line.values[i] ?? null, panel.unit)}`;
      if (line.low && line.low[i] !== null && line.low[i] !== undefined) {
        words += ` (${Palestra.share(line.low[i]).replace(" %", "")} to ${Palestra.share(line.high[i]).replace(" %", "")})`;
      }
      const swatch = Palestra.element("i", { class: `fill-${line.style}` });
      return Palestra.element("span", {}, swatch, words);
    });
    element.replaceChildren(...parts);
  }

  function axis(panel, side) {
    const common = {
      stroke: variable("soft"), font: "11px system-ui, sans-serif", ticks: { show: false },
      grid: { stroke: variable("grid"), width: 1 }, labelGap: 0,
    };
    if (side === "x") return { ...common, grid: { show: false }, size: 24, gap: 4, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] };
    const unit = ["seconds", "ratio"].includes(panel.unit) ? "number" : panel.unit;
    // As many digits as tell the ticks apart.
    const show = (values) => {
      let labels = values.map((value) => Palestra.value(value, unit));
      for (let digits = 4; new Set(labels).size < labels.length && digits < 12; digits++) {
        labels = values.map((value) => (unit === "share" ? `${Number((100 * value).toPrecision(digits))} %` : String(Number(value.toPrecision(digits)))));
      }
      return labels;
    };
    return { ...common, size: 52, gap: 6, space: 28, values: (u, values) => show(values) };
  }

  function draw(panel) {
    const old = drawn.get(panel.name);
    const holder = old?.holder ?? Palestra.element("figure", { class: "panel", "data-panel": panel.name });
    if (!old) {
      const heading = Palestra.element("button", { type: "button", title: "enlarge" }, panel.heading);
      heading.addEventListener("click", () => { holder.classList.toggle("wide"); resize(panel.name); });
      holder.append(
        Palestra.element("h2", {}, heading), Palestra.element("p", { class: "note" }, panel.note),
        Palestra.element("div", { class: "readout" }), Palestra.element("div", { class: "plot" }),
      );
      place.append(holder);
    }
    old?.plot.destroy();
    const words = holder.querySelector(".readout");
    const { data, series } = plan(panel);
    const alone = panel.steps.length === 1;
    const few = panel.stack && panel.steps.length <= BARS_UP_TO;
    const plot = new uPlot({
      width: size(holder)[0], height: size(holder)[1], padding: [8, 10, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false }, y: false, points: { size: 6 } },
      scales: {
        x: { time: false, range: (u, low, high) => (alone || few ? [low - 0.6, high + 0.6] : [low, high]) },
        y: { range: bounds(panel) },
      },
      axes: [axis(panel, "x"), axis(panel, "y")],
      series,
      hooks: {
        drawClear: [drawIntervals(panel.lines)],
        draw: [(u) => {
          if (panel.reference === null || panel.reference === undefined) return;
          const y = u.valToPos(panel.reference, "y", true);
          u.ctx.save();
          u.ctx.strokeStyle = variable("soft");
          u.ctx.setLineDash([4, 4]);
          u.ctx.beginPath();
          u.ctx.moveTo(u.bbox.left, y);
          u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
          u.ctx.stroke();
          u.ctx.restore();
        }],
        setCursor: [(u) => {
          readout(words, panel, u.cursor.idx);
          cursorWords.textContent = u.cursor.idx === null || u.cursor.idx === undefined ? "" : `step ${panel.steps[u.cursor.idx]}`;
        }],
        setScale: [(u, key) => {
          if (key !== "x") return;
          const full = u.scales.x.min <= u.data[0][0] && u.scales.x.max >= u.data[0].at(-1);
          range = full ? null : [u.scales.x.min, u.scales.x.max];
        }],
      },
    }, data, holder.querySelector(".plot"));
    sync.sub(plot);
    readout(words, panel, null);
    drawn.set(panel.name, { holder, plot, panel });
  }

  function size(holder) {
    const wide = holder.classList.contains("wide");
    return [Math.max(200, holder.clientWidth - 26), wide ? TALL : HEIGHT];
  }
  function resize(name) {
    const { holder, plot } = drawn.get(name);
    const [width, height] = size(holder);
    if (plot.width !== width || plot.height !== height) plot.setSize({ width, height });
  }

  function show(panels) {
    const kept = range;
    for (const panel of panels) draw(panel);
    // What was zoomed into stays so when steps are added.
    if (kept) for (const { plot } of drawn.values()) plot.setScale("x", { min: kept[0], max: kept[1] });
    if (panels.length === 0) place.replaceChildren(Palestra.element("p", { class: "soft" }, "No step is complete yet."));
    else place.querySelector(":scope > p")?.remove();
    place.dataset.drawn = String(panels.length);
  }

  const SVG = "http://www.w3.org/2000/svg";
  function shape(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function timeline(rows, evaluated) {
    const strip = document.getElementById("timeline");
    const timed = rows.filter((row) => row[5] !== null);
    if (!strip || timed.length === 0) return;
    const from = timed[0][1] - timed[0][5], until = Math.max(timed.at(-1)[1], ...evaluated.map((one) => one[1]));
    const width = 1000, x = (seconds) => (width * (seconds - from)) / Math.max(1e-9, until - from);
    const svg = shape("svg", { viewBox: `0 0 ${width} 46`, preserveAspectRatio: "none", role: "img", "aria-label": "steps over the clock" });
    for (const [step, end, wait, train, publish, all] of timed) {
      const link = shape("a", { href: `/runs/${strip.dataset.run}/episodes?step=${step}` });
      link.append(shape("title", {}, `step ${step}: ${Palestra.seconds(all)}; episodes ${Palestra.seconds(wait)}, training ${Palestra.seconds(train)}, publishing ${Palestra.seconds(publish)}`));
      let at = end - all;
      for (const [name, seconds] of [["wait", wait], ["train", train], ["publish", publish]]) {
        if (seconds) link.append(shape("rect", { class: name, x: x(at), y: 8, width: Math.max(0.4, x(at + seconds) - x(at) - 0.4), height: 30 }));
        at += seconds ?? 0;
      }
      svg.append(link);
    }
    for (const [step, seconds] of evaluated) {
      if (seconds < from) continue;
      const line = shape("line", { class: "evaluated", x1: x(seconds), x2: x(seconds), y1: 3, y2: 43, "vector-effect": "non-scaling-stroke" });
      line.append(shape("title", {}, `evaluated after step ${step}`));
      svg.append(line);
    }
    const legend = [["wait", "waiting for episodes"], ["train", "training"], ["publish", "publishing weights"], ["s3", "held-out evaluation ends"]]
      .map(([style, words]) => Palestra.element("span", {}, Palestra.element("i", { class: `fill-${style}` }), words));
    const ends = `steps ${timed[0][0]} to ${timed.at(-1)[0]} over ${Palestra.seconds(until - from)}; gaps are evaluations, checkpoints and restarts`;
    strip.replaceChildren(svg, Palestra.element("p", {}, ...legend, Palestra.element("span", {}, ends)));
  }

  async function refresh() {
    const mark = place.dataset.series.includes("?") ? "&" : "?";
    const response = await fetch(`${place.dataset.series}${mark}since=${revision}`);
    if (response.status !== 200) return;
    const found = await response.json();
    revision = found.revision ?? -1;
    show(found.panels);
    if (found.timeline) timeline(found.timeline, found.evaluated);
    const state = document.getElementById("state");
    if (state && found.live !== undefined) {
      state.textContent = found.live ? "live" : "ended";
      state.className = `state ${found.live ? "live" : "ended"}`;
    }
    const steps = found.timeline?.at(-1)?.[0];
    if (steps !== undefined && document.getElementById("step")) document.getElementById("step").textContent = steps;
    const episodes = document.getElementById("episodes");
    if (episodes && found.episodes !== undefined) episodes.textContent = Palestra.count(found.episodes);
  }

  new ResizeObserver(() => { for (const name of drawn.keys()) resize(name); }).observe(place);
  const redraw = () => show([...drawn.values()].map(({ panel }) => panel));
  document.addEventListener("palestra-theme", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  if ("once" in place.dataset) refresh(); else Palestra.poll(2000, refresh);
})();
