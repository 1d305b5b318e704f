// What goes on at this moment, asked every second.
"use strict";

(() => {
  const place = document.getElementById("now");
  const said = document.getElementById("said");
  const WORDS = {
    queued: "queued", image: "pulling", start: "starting", thinking: "thinking",
    command: "running a command", diff: "reading the diff", grade: "grading",
  };

  function facts(id, pairs) {
    const rows = pairs.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) =>
      Palestra.element("div", {}, Palestra.element("dt", { title: name }, name), Palestra.element("dd", {}, String(value))));
    document.getElementById(id).replaceChildren(...(rows.length ? rows : [Palestra.element("div", {}, Palestra.element("dt", {}, "nothing"))]));
  }
  function cell(text, style) {
    return Palestra.element("td", { ...(style ? { class: style } : {}), title: text }, text);
  }

  function doing(one) {
    if (one.doing || !one.last_command) return cell(one.doing);
    const words = `after ${one.last_command}`;
    return Palestra.element("td", { class: "idle", title: words }, words);
  }

  function episodes(environment) {
    const body = document.querySelector("#live tbody");
    const marked = body.querySelector("[data-marked]")?.dataset.id;
    const rows = (environment?.episodes ?? []).map((one) => {
      const stage = Palestra.element("td", {}, Palestra.element("span", { class: `stage ${WORDS[one.stage] ? one.stage : ""}` }, WORDS[one.stage] ?? one.stage));
      const row = Palestra.element("tr", { "data-nav": "", "data-id": one.id },
        cell(one.task), stage, cell(Palestra.seconds(one.seconds), "num"), cell(Palestra.seconds(one.stage_s), "num"),
        cell(one.num_commands === null ? "–" : String(one.num_commands), "num"), doing(one), cell(Palestra.seconds(one.doing_s), "num"));
      if (one.id === marked) row.dataset.marked = "";
      return row;
    });
    body.replaceChildren(...rows);
    document.getElementById("none").hidden = rows.length > 0;
    document.dispatchEvent(new CustomEvent("palestra-rows"));
  }

  function stages(environment) {
    const counts = environment?.stages ?? {};
    const names = [...new Set([...Object.keys(WORDS), ...Object.keys(counts)])];
    document.getElementById("stages").replaceChildren(...names.map((name) => {
      const number = counts[name] ?? 0;
      return Palestra.element("div", { ...(number ? {} : { class: "none" }), "data-stage": name },
        Palestra.element("dt", {}, WORDS[name] ?? name), Palestra.element("dd", { class: "num" }, String(number)));
    }));
  }

  function show(now) {
    const { environment, machine, engine, recent } = now;
    const parts = [];
    if (now.live === false) parts.push("no process works on this run");
    if (!environment) parts.push(now.live === false ? "" : "no environment server has announced itself yet");
    else if (environment.error) parts.push(`the environment server at ${environment.url} does not answer: ${environment.error}`);
    else parts.push(`environment server ${environment.url}, up ${Palestra.seconds(environment.uptime_s)}${environment.is_stopping ? ", stopping" : ""}`);
    if (now.heard_s) parts.push(`last event ${Palestra.seconds(Math.max(0, now.clock_s - now.heard_s))} ago`);
    said.textContent = parts.filter(Boolean).join(" · ");
    stages(environment);
    episodes(environment);
    facts("engine", engine ? [
      ["weights", engine.version], ["last step", engine.step], ["sampled ids/s, last step", engine.tokens_per_s && Palestra.number(engine.tokens_per_s)],
      ["last step took", engine.step_s && Palestra.seconds(engine.step_s)], ["staleness, versions", engine.staleness !== null ? Palestra.number(engine.staleness) : null],
    ] : []);
    const busy = (environment?.episodes ?? []).filter((one) => !["queued", "image"].includes(one.stage)).length;
    facts("sandboxes", [
      ["live", environment && !environment.error ? `${busy} of ${environment.concurrency}` : null], ["kind", engine?.sandbox?.replace(/^sandbox: /, "")],
      ...Object.entries(environment?.totals ?? {}).map(([name, count]) => [`ended: ${name.replace("_", " ")}`, Palestra.number(count)]),
    ]);
    const used = (part, whole) => (part === null ? null : `${Palestra.bytes(part)} of ${Palestra.bytes(whole)}`);
    facts("machine", [
      ["load", `${machine.load.map((one) => one.toFixed(1)).join("  ")} on ${machine.num_cpus} cores`],
      ["memory", used(machine.memory_used_bytes, machine.memory_total_bytes)], ["disk", used(machine.disk_used_bytes, machine.disk_total_bytes)],
    ]);
    facts("images", [...Object.entries(environment?.pulling ?? {}), ...Object.entries(environment?.failed ?? {})]);
    facts("recent", recent ? [
      ["episodes ended", recent.ended], ["of them waiting for a step", recent.waiting],
      ...Object.entries(recent.outcomes).map(([name, count]) => [name.replace("_", " "), count]),
    ] : []);
    document.getElementById("notices").replaceChildren(...now.notices.toReversed().map(([time, , text]) =>
      Palestra.element("li", {}, Palestra.element("time", {}, Palestra.clock(time)), Palestra.element("span", {}, text))));
    place.dataset.asked = String(Number(place.dataset.asked ?? 0) + 1);
  }

  Palestra.poll(1000, async () => {
    const response = await fetch(place.dataset.now);
    if (response.ok) show(await response.json());
    else said.textContent = await response.text();
  });
})();
