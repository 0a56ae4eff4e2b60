// What the browser tests ask JupyterLab's page. The server shows its application as window.jupyterapp.
window.lesson = {
  panel() {
    return [...jupyterapp.shell.widgets("main")].find((widget) => widget.sessionContext && widget.content?.widgets);
  },

  kernel() {
    return this.panel()?.sessionContext?.session?.kernel;
  },

  loaded() {
    const commands = window.jupyterapp?.commands;
    return Boolean(commands?.hasCommand("application:toggle-left-area") && !document.querySelector("#jupyterlab-splash"));
  },

  ready() {
    return this.loaded() && this.kernel()?.connectionStatus === "connected" && this.kernel().status === "idle";
  },

  // The value of a Python expression that is JSON. Nothing is left in the lesson's history or names.
  async ask(expression) {
    const wrapped = `__import__("base64").b64encode(__import__("json").dumps(${expression}).encode()).decode()`;
    const request = this.kernel().requestExecute({
      code: "", silent: true, store_history: false, user_expressions: { answer: wrapped },
    });
    const { answer } = (await request.done).content.user_expressions;
    if (answer.status !== "ok") throw new Error(`${expression}: ${answer.ename}: ${answer.evalue}`);
    const bytes = Uint8Array.from(atob(answer.data["text/plain"].slice(1, -1)), (letter) => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  },

  codeCells() {
    return this.panel().content.widgets.filter((cell) => cell.model.type === "code");
  },

  select(number) {
    this.panel().content.activeCellIndex = this.panel().content.widgets.indexOf(this.codeCells().at(number));
  },

  haveRun() {
    return this.kernel()?.status === "idle" && this.codeCells().every(
      ({ model }) => model.executionState !== "running" && (model.executionCount || !model.sharedModel.source.trim()));
  },

  // Outputs in error, of cells that do not announce one, and dialogs.
  errors() {
    const found = [...document.querySelectorAll(".jp-Dialog")].map((dialog) => `dialog: ${dialog.innerText}`);
    for (const { model } of this.codeCells()) {
      const expected = (model.getMetadata("tags") ?? []).includes("raises-exception");
      for (const output of model.outputs.toJSON()) {
        if (output.output_type === "error" && !expected) {
          found.push(`${output.ename}: ${output.evalue}\nin: ${model.sharedModel.source}`);
        }
      }
    }
    return found;
  },

  // The boxes that explore() made: controls, then the status line, then the answer.
  boxes() {
    return [...document.querySelectorAll(".jp-OutputArea .widget-vbox")];
  },

  status(box) {
    return this.boxes()[box].querySelectorAll(".widget-html .widget-html-content")[0].innerText.split(/\s+/).join(" ").trim();
  },

  answer(box) {
    return this.boxes()[box].querySelectorAll(".widget-html .widget-html-content")[1].innerHTML;
  },

  // The same HTML in the page's own spelling.
  asInPage(html) {
    const place = document.createElement("div");
    place.innerHTML = html;
    return place.innerHTML;
  },

  // From now on note when a control of the box was touched, and when an answer was there to be seen.
  watch(box) {
    const times = ((this.times ??= [])[box] = { touched: null, shown: null });
    const element = this.boxes()[box];
    for (const kind of ["keydown", "pointermove", "pointerdown", "change"]) {
      element.addEventListener(kind, () => (times.touched = performance.now()), { capture: true });
    }
    const content = element.querySelectorAll(".widget-html .widget-html-content")[1];
    new MutationObserver(async () => {
      await Promise.all([...content.querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
      times.shown = performance.now();
    }).observe(content, { childList: true, subtree: true, characterData: true });
  },

  // Seconds from the last touch to the answer that is now there; null if there was no new one.
  seconds(box) {
    const { touched, shown } = this.times[box];
    return touched && shown > touched ? (shown - touched) / 1000 : null;
  },

  // What a learner would miss: labels that are cut off, and pictures wider than their place.
  cutOff(box) {
    const element = this.boxes()[box];
    const labels = [...element.querySelectorAll(".widget-label")].filter(
      (label) => label.scrollWidth > label.clientWidth + 1);
    const place = element.closest(".jp-OutputArea-output").getBoundingClientRect();
    const pictures = [...element.querySelectorAll("img, svg")].filter(
      (picture) => picture.getBoundingClientRect().right > place.right + 1);
    return [...labels.map((label) => label.innerText), ...pictures.map((picture) => picture.alt || picture.tagName)];
  },
};
