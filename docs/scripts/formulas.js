// Formulas: what Markdown left as \( ... \) or \[ ... \] is drawn by KaTeX, from docs/vendor.
for (const place of document.querySelectorAll(".arithmatex")) {
  const formula = place.textContent.trim().slice(2, -2);
  katex.render(formula, place, { displayMode: place.tagName === "DIV", throwOnError: false });
}
