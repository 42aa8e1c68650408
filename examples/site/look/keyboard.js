// The theme's two menus are labels of hidden boxes, which no key reaches: here they are buttons as well. Enter or space
// opens one and goes to its first link, Escape closes it and comes back.
const first = (panel) => [...panel.querySelectorAll("a, input")].find((element) => element.offsetParent !== null);

document.addEventListener("DOMContentLoaded", () => {
  for (const [box, drawer, name] of [
    ["__navigation", ".sidebar-drawer", "Pages"],
    ["__toc", ".toc-drawer", "On this page"],
  ]) {
    const state = document.getElementById(box);
    const panel = document.querySelector(drawer);
    const buttons = [...document.querySelectorAll(`label[for="${box}"]:not(.overlay):not(.no-toc)`)];
    if (!state || !panel) continue;
    const say = () => buttons.forEach((button) => button.setAttribute("aria-expanded", String(state.checked)));
    const turn = (open) => {
      state.checked = open;
      say();
    };
    let last = null;
    for (const button of buttons) {
      button.tabIndex = 0;
      button.setAttribute("role", "button");
      button.setAttribute("aria-label", name);
      button.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        last = button;
        turn(!state.checked);
        // Not before it is visible, or it takes no focus.
        if (state.checked) requestAnimationFrame(() => first(panel)?.focus());
      });
    }
    state.addEventListener("change", say);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !state.checked) return;
      turn(false);
      last?.focus();
    });
    say();
  }
});
