// What a run answers to an input: attempts, their way there, and votes.

const framed = (caption, note, drawing) =>
  h(
    "figure",
    { class: "framed" },
    h("figcaption", {}, h("b", {}, caption), note && h("span", { class: "soft block" }, note)),
    drawing,
  );

const verdictOf = (isRight) => (isRight === null ? "" : isRight ? "right" : "wrong");
const verdictIcon = (isRight) => (isRight === null ? null : statusIcon(isRight ? "solved" : "unsolved"));
const judged = (name, isRight) => [name, verdictOf(isRight)].filter(Boolean).join(", ");

function attemptFigure(attempt, name, input, shape) {
  const isWrong = input.truth !== null && !attempt.is_right;
  const wrong = isWrong ? differences(attempt.grid, input.truth).cells : [];
  const drawing = drawGrid(attempt.grid, { ...shape, label: judged(name, attempt.is_right), wrong });
  return framed(
    [word("attempt", name), " ", verdictIcon(attempt.is_right)],
    attempt.note || verdictOf(attempt.is_right),
    drawing,
  );
}

function candidateEntry(candidate, most, shape) {
  const label = judged(`Candidate ${candidate.rank}`, candidate.is_right);
  const meter = h("i", { style: `width: ${(100 * candidate.votes) / most}%` });
  const verdict = [" ", verdictIcon(candidate.is_right), candidate.is_right && " right"];
  return h(
    "li",
    { class: verdictOf(candidate.is_right) },
    h("div", { class: "hold" }, drawGrid(candidate.grid, { ...shape, side: 84, least: 2, most: 16, label })),
    h("div", { class: "meter", "aria-hidden": "true" }, meter),
    h("div", {}, h("b", {}, `#${candidate.rank}`), verdict),
    h("div", {}, plural(candidate.votes, "vote")),
    h("div", { class: "soft" }, word("q"), ` ${short(candidate.q)}`),
  );
}

// Of a single answer, which nothing was voted on, the note alone.
function votesOf(answer, shape) {
  if (!answer.candidates.length || answer.num_votes <= 1) {
    return answer.note && h("p", { class: "soft small" }, answer.note);
  }
  const most = Math.max(...answer.candidates.map((candidate) => candidate.votes), 1);
  const numbers = `${plural(answer.num_votes, "vote")} for ${plural(answer.num_candidates, "candidate")}`;
  return h(
    "div",
    { class: "votes" },
    h("h4", {}, word("vote", "Votes")),
    h("p", { class: "soft small" }, numbers, answer.note && `; ${answer.note}`),
    h("ol", {}, answer.candidates.map((candidate) => candidateEntry(candidate, most, shape))),
  );
}

function answerOf(puzzle, run, index, shape, players) {
  const [input, answer] = [puzzle.inputs[index], puzzle.results[run]?.answers[index]];
  const heading = isComparison() && h("h3", {}, runName(run), " ", statusBadge(statusOf(puzzle, run)));
  if (!answer) return h(
    "div",
    { class: "answer" },
    heading,
    h("p", { class: "soft" }, "This run has no answer."),
  );
  const nameOfAttempt = (i) => (answer.attempts.length > 1 ? `Attempt ${i + 1}` : "Answer");
  const attempts = answer.attempts.map(
    (attempt, i) => attemptFigure(attempt, nameOfAttempt(i), input, shape),
  );
  const trajectories = players ? answer.trajectories : [];
  return h(
    "div",
    { class: "answer" },
    heading,
    h("div", { class: "attempts" }, attempts.length ? attempts : h("p", { class: "soft" }, "No answer.")),
    trajectories.length > 0 && h(
      "div",
      { class: `players${trajectories.length > 1 ? " many" : ""}` },
      trajectories.map((trajectory) => trajectoryView(trajectory, input, shape, players)),
    ),
    votesOf(answer, shape),
  );
}
