// Plays all trajectories of a puzzle in step.

const SPEEDS = [["1", "1 a second"], ["2", "2 a second"], ["4", "4 a second"], ["10", "10 a second"]];
let speed = "2";

class Player {
  constructor() {
    this.shows = [];
    this.length = 0;
    this.timer = null;
  }

  add(length, show) {
    this.length = Math.max(this.length, length);
    this.shows.push(show);
  }

  // Counted from 0; the last, if the address names none.
  get index() {
    const asked = /^\d+$/.test(state.segment) ? Number(state.segment) : this.length;
    return Math.min(Math.max(asked, 1), this.length) - 1;
  }

  get isPlaying() {
    return this.timer !== null;
  }

  bar() {
    if (!this.length) return noTrajectories();
    const step = (label, by, title) => button(
      label,
      () => this.step(by),
      { "aria-label": title, title, "data-key": title },
    );
    this.slider = h("input", {
      type: "range",
      min: 1,
      max: this.length,
      step: 1,
      "aria-label": "Segment",
      "data-key": "slider",
      oninput: (event) => this.go(Number(event.target.value) - 1),
    });
    this.play = button("", () => this.toggle(), { class: "play", "data-key": "play" });
    this.place = h("span", { class: "place" });
    return h(
      "div",
      { class: "player-bar controls", role: "group", "aria-label": "Player" },
      this.play,
      step("‹", -1, "Segment before (←)"),
      this.slider,
      step("›", 1, "Next segment (→)"),
      this.place,
      choice(SPEEDS, speed, (value) => this.setSpeed(value), { "aria-label": "Speed", "data-key": "speed" }),
      h("span", { class: "key soft small" }, markKey("changed"), " changed ", markKey("wrong"), " wrong"),
    );
  }

  setSpeed(value) {
    speed = value;
    if (this.isPlaying) this.start();
  }

  show() {
    if (!this.length) return;
    for (const show of this.shows) show(this.index);
    this.slider.value = this.index + 1;
    this.place.textContent = `segment ${this.index + 1} of ${this.length}`;
    this.slider.setAttribute("aria-valuetext", this.place.textContent);
    this.play.textContent = this.isPlaying ? "Pause" : "Play";
    this.play.title = `${this.play.textContent} (space)`;
  }

  go(index) {
    const next = Math.min(Math.max(index, 0), this.length - 1);
    choose({ segment: String(next + 1) }, { push: false });
    this.show();
  }

  step(by) {
    if (!this.length) return;
    this.stop();
    this.go(this.index + by);
    this.reveal();
  }

  toggle() {
    if (!this.length) return;
    if (this.isPlaying) this.stop();
    else {
      if (this.index === this.length - 1) this.go(0);
      this.start();
      this.reveal();
    }
    this.show();
  }

  // On a small screen all grids that play may be out of sight.
  reveal() {
    const grids = [...byId("puzzle").querySelectorAll(".player .hold")];
    const end = this.play.closest(".player-bar").getBoundingClientRect().top;
    const isSeen = (grid) => {
      const { top, bottom } = grid.getBoundingClientRect();
      return bottom > 0 && bottom <= end || top >= 0 && top < end - 40;
    };
    if (!grids.some(isSeen)) grids[0]?.closest(".player").scrollIntoView();
  }

  start() {
    clearInterval(this.timer);
    this.timer = setInterval(() => {
      if (this.index >= this.length - 1) this.stop();
      else this.go(this.index + 1);
      this.show();
    }, 1000 / Number(speed));
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }
}

const markKey = (kind) => svg(
  "svg",
  { class: "mark-key", viewBox: "0 0 1 1", style: "--stroke: .09", "aria-hidden": "true" },
  svg("path", { d: "M0 0h1v1h-1z", fill: "var(--line)" }),
  marks([[0, 0]], kind, false),
);

const noTrajectories = () =>
  h(
    "p",
    { class: "soft small no-player controls" },
    "To step through the answers ",
    word("segment"),
    " by segment, evaluate with ",
    h("code", {}, "python -m tools.evaluate CHECKPOINT --data DIR --out DIR --every-segment"),
    " and make this page again.",
  );
