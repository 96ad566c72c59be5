// Fills in the JupyterHub links of the launch page from the address in its field.
(() => {
  const field = document.getElementById("hub");
  const links = document.querySelectorAll("a.hub");
  const update = () => {
    let hub = null;
    try {
      const url = new URL(field.value.trim());
      if (url.protocol === "https:" || url.protocol === "http:") hub = url.href.replace(/\/+$/, "");
    } catch {
      hub = null;
    }
    for (const link of links) {
      if (hub) link.href = hub + link.dataset.query;
      else link.removeAttribute("href");
    }
  };
  field.addEventListener("input", update);
  update();
})();
