// What the theme's script adds to a page without a name, or out of reach of the keyboard.

const complete = (root) => {
  for (const wide of root.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
    wide.tabIndex = 0;
  }
  for (const group of root.querySelectorAll("nav.md-code__nav:not([role])")) {
    group.setAttribute("role", "none");
  }
  for (const button of root.querySelectorAll("button.md-code__button:not([aria-label])")) {
    button.setAttribute("aria-label", button.title);
  }
};

new MutationObserver(() => complete(document)).observe(document.body, { childList: true, subtree: true });
complete(document);
