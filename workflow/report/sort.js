// Tables that sort by a button in the heading, and searches that hide rows by their words. Without JavaScript they stay plain.
(() => {
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim().replace("\u2212", "-");
    const number = Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  const missing = (value) => value === "" || value === "\u2013";
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const sortBy = (column) => {
      const heading = headings[column];
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [valueOf(row, column), row]);
      keyed.sort(([a], [b]) => missing(a) - missing(b) || direction * compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    };
    headings.forEach((heading, column) => {
      heading.querySelector("button")?.addEventListener("click", () => sortBy(column));
    });
  }
  for (const search of document.querySelectorAll("[data-filter]")) {
    const rows = [...document.getElementById(search.dataset.filter).tBodies[0].rows];
    const told = document.querySelector(`[data-count="${search.dataset.filter}"]`);
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) row.hidden = !words.every((word) => row.dataset.words.includes(word));
      told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${told.dataset.what}`;
    };
    search.addEventListener("input", filter);
    filter();
  }
})();
