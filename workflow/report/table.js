// The table of scans: filtering and decisions. sort.js sorts a short table; a long one (scans.js) shows the rows in view only.
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0];
  const search = document.getElementById("filter");
  const buttons = [...document.querySelectorAll("[data-show]")];
  const cards = [...document.querySelectorAll(".card")];

  const key = `popatlas:${table.dataset.study}`;
  const load = () => { try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; } };
  const decisions = load();

  const plain = () => {
    const rows = [...body.rows];
    for (const select of body.querySelectorAll("select")) select.value = decisions[select.dataset.scan] || "";
    return {
      names: rows.map((row) => row.querySelector("select").dataset.scan),
      show(fits) {
        for (const row of rows) row.hidden = !fits(row.dataset.words, row.dataset.state);
        return rows.filter((row) => !row.hidden).length;
      },
    };
  };

  const long = ({ digits, texts, rows }) => {
    const [STATE, STAGE, REASON, MEASURE, REGISTERED, ODD, RANK, SCORE, ATLASES, VALUES] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const headings = [...table.tHead.rows[0].cells];
    const hasAtlases = headings.length === 7 + digits.length;
    const text = (row, place) => texts[row[place]];
    const words = new Map(rows.map((row) => [row, [
      row[0], ...[STATE, STAGE, REASON, MEASURE, REGISTERED].map((place) => text(row, place)), row[ODD] ? "outlier" : "",
    ].join(" ").toLowerCase()]));
    const keys = [
      (row) => row[0], null, (row) => text(row, STATE), (row) => row[RANK], (row) => text(row, MEASURE) || text(row, STAGE),
      (row) => text(row, REGISTERED), ...(hasAtlases ? [(row) => (text(row, STATE) === "ok" ? row[ATLASES] : null)] : []),
      ...digits.map((_, place) => (row) => row[VALUES + place]),
    ];
    const number = (value, places) => (value === null ? "\u2013" : value.toFixed(places).replace("-", "\u2212"));
    const pattern = body.querySelector("select");
    const add = (line, tag, content, name) => {
      const cell = line.appendChild(document.createElement(tag));
      if (name) cell.className = name;
      cell.append(content);
      return cell;
    };
    const lineOf = (row, place) => {
      const line = document.createElement("tr"), ok = text(row, STATE) === "ok";
      line.setAttribute("aria-rowindex", place + 2);
      let name = row[0];
      if (row[1]) {
        name = document.createElement("a");
        name.href = `subjects/${encodeURIComponent(row[0])}.html`;
        name.textContent = row[0];
      }
      add(line, "th", name).scope = "row";
      const select = pattern.cloneNode(true);
      select.dataset.scan = row[0];
      select.setAttribute("aria-label", `Decision on ${row[0]}`);
      select.value = decisions[row[0]] || "";
      add(line, "td", select);
      const badge = document.createElement("span");
      badge.className = `badge ${text(row, STATE)}`;
      badge.textContent = text(row, STATE);
      add(line, "td", badge);
      add(line, "td", ok ? number(row[SCORE], 2) : "\u2013", row[ODD] ? "n far" : "n");
      add(line, "td", text(row, MEASURE) || text(row, STAGE), "nowrap");
      add(line, "td", text(row, REGISTERED), "nowrap");
      if (hasAtlases) add(line, "td", ok ? String(row[ATLASES]) : "\u2013", "n");
      digits.forEach((places, value) => add(line, "td", number(row[VALUES + value], places), "n"));
      return line;
    };

    const box = table.closest(".box");
    let height = body.rows[0].getBoundingClientRect().height, order = rows, seen = rows, first = -1, last = -1;
    const spacer = (count) => {
      const line = document.createElement("tr");
      line.setAttribute("aria-hidden", "true");
      const cell = line.appendChild(document.createElement("td"));
      cell.colSpan = headings.length;
      cell.style.cssText = `padding: 0; border: 0; height: ${count * height}px`;
      return line;
    };
    const draw = (anew) => {
      const from = Math.max(0, Math.floor(box.scrollTop / height) - 10);
      const to = Math.min(seen.length, from + Math.ceil(box.clientHeight / height) + 20);
      if (!anew && from === first && to === last) return;
      [first, last] = [from, to];
      const lines = seen.slice(from, to).map((row, place) => lineOf(row, from + place));
      body.replaceChildren(spacer(from), ...lines, spacer(seen.length - to));
      if (lines.length) height = lines[0].getBoundingClientRect().height || height;
      // columns must not jump when others are scrolled into view
      headings.forEach((heading) => { heading.style.minWidth = `${heading.getBoundingClientRect().width}px`; });
    };
    let waits = false;
    box.addEventListener("scroll", () => {
      if (waits) return;
      waits = true;
      requestAnimationFrame(() => { waits = false; draw(false); });
    });
    const collator = new Intl.Collator("en", { numeric: true });
    const missing = (value) => value === null || value === "";
    let fitting = () => true;
    const filter = () => { seen = order.filter((row) => fitting(words.get(row), text(row, STATE))); draw(true); };
    headings.forEach((heading, column) => heading.querySelector("button")?.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1, keyOf = keys[column];
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const compare = (a, b) => (typeof a === "number" ? a - b : collator.compare(a, b));
      const keyed = order.map((row) => [keyOf(row), row]);
      keyed.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : direction * compare(a, b)));
      order = keyed.map(([, row]) => row);
      filter();
    }));
    return {
      names: rows.map((row) => row[0]),
      show(fits) {
        fitting = fits;
        box.scrollTop = 0;
        filter();
        return seen.length;
      },
    };
  };

  const list = window.popatlasRows ? long(window.popatlasRows) : plain();
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = buttons.find((button) => button.getAttribute("aria-pressed") === "true").dataset.show;
    const fits = (text, state) => (wanted === "outlier" ? text.endsWith("outlier") : !wanted || state === wanted)
      && words.every((word) => text.includes(word));
    for (const card of cards) card.hidden = !fits(card.dataset.words, card.dataset.state);
    document.getElementById("shown").textContent = `${list.show(fits)} of ${list.names.length} scans`;
  };
  search.addEventListener("input", filter);
  buttons.forEach((button) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    filter();
  }));
  filter();

  body.addEventListener("change", ({ target }) => {
    decisions[target.dataset.scan] = target.value;
    try { localStorage.setItem(key, JSON.stringify(decisions)); } catch { /* a browser without storage */ }
  });
  const decided = () => list.names.filter((name) => decisions[name]);
  const split = (name) => { const [subject, session = ""] = name.split("_"); return [subject, session]; };
  document.getElementById("export").addEventListener("click", () => {
    const lines = decided().map((name) => [...split(name), decisions[name]].map((cell) => cell || "n/a").join("\t")).sort();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([["participant_id\tsession_id\tdecision", ...lines, ""].join("\n")]));
    link.download = "qc_decisions.tsv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const out = decided().filter((name) => decisions[name] === "exclude").map((name) => split(name)[0]);
    const text = `cohort:\n  exclude: [${[...new Set(out)].sort().join(", ")}]\n`;
    try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; }
    catch { window.prompt("Put this into the configuration", text); }
  });
})();
