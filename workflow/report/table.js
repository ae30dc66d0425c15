// The table of scans: filtering and decisions; sort.js sorts it.
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0];
  const search = document.getElementById("filter");
  const buttons = [...document.querySelectorAll("[data-show]")];
  const filtered = [...body.rows, ...document.querySelectorAll(".card")];
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const show = buttons.find((button) => button.getAttribute("aria-pressed") === "true").dataset.show;
    for (const item of filtered) {
      const fits = show === "outlier" ? item.dataset.words.endsWith("outlier") : !show || item.dataset.state === show;
      item.hidden = !fits || !words.every((word) => item.dataset.words.includes(word));
    }
    const left = [...body.rows].filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = `${left} of ${body.rows.length} scans`;
  };
  search.addEventListener("input", filter);
  buttons.forEach((button) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    filter();
  }));
  filter();

  const key = `popatlas:${table.dataset.study}`;
  const load = () => { try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; } };
  const decisions = load();
  const decided = () => [...body.querySelectorAll("select")].filter((select) => select.value);
  for (const select of body.querySelectorAll("select")) {
    select.value = decisions[select.dataset.scan] || "";
    select.addEventListener("change", () => {
      decisions[select.dataset.scan] = select.value;
      try { localStorage.setItem(key, JSON.stringify(decisions)); } catch { /* a browser without storage */ }
    });
  }
  const split = (name) => { const [subject, session = ""] = name.split("_"); return [subject, session]; };
  document.getElementById("export").addEventListener("click", () => {
    const lines = decided().map((select) => [...split(select.dataset.scan), select.value].map((cell) => cell || "n/a").join("\t")).sort();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([["participant_id\tsession_id\tdecision", ...lines, ""].join("\n")]));
    link.download = "qc_decisions.tsv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const out = decided().filter((select) => select.value === "exclude").map((select) => split(select.dataset.scan)[0]);
    const text = `cohort:\n  exclude: [${[...new Set(out)].sort().join(", ")}]\n`;
    try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; }
    catch { window.prompt("Put this into the configuration", text); }
  });
})();
