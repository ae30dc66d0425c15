// Previous and next scan in the order of the cohort page, and the swap of registered brain and template.
(() => {
  const names = window.popatlasScans || [];
  const here = names.indexOf(document.querySelector("h1").textContent);
  const show = (id, name) => {
    const link = document.getElementById(id);
    if (here < 0 || !name) return;
    link.href = encodeURIComponent(name) + ".html";
    link.querySelector("span").textContent = name;
    link.hidden = false;
  };
  show("previous", names[here - 1]);
  show("next", names[here + 1]);

  const button = document.querySelector(".compare");
  const other = document.querySelector("#template img");
  if (button && other) {
    const image = document.querySelector("#registration img");
    const own = image.getAttribute("src");
    button.hidden = false;
    button.addEventListener("click", () => {
      const swapped = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(swapped));
      image.src = swapped ? other.getAttribute("src") : own;
    });
  }
})();
