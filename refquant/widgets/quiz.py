"""A quiz: questions with one right answer, and feedback for each wrong one.

    quiz(Question("2 + 2?", right=("4", "Yes."), wrong=[("5", "One too many."), ("22", "That is the text.")]))

The answers stand in an order that depends on the question only, so that the right one has no fixed place. On a page
that runs no widgets the questions stand as text, with their answers folded.
"""

import hashlib
import html
from dataclasses import dataclass, field

import ipywidgets as w

from refquant.errors import BadInput


@dataclass(frozen=True)
class Question:
    """A question. `right` and each of `wrong` are (answer, what to tell who chose it)."""

    text: str
    right: tuple[str, str]
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self):
        answers = [self.right, *self.wrong]
        if not self.wrong or not all(len(pair) == 2 and all(pair) for pair in answers):
            raise BadInput(f"{self.text!r} needs wrong answers, and feedback for each answer")
        if len({text for text, _ in answers}) != len(answers):
            raise BadInput(f"{self.text!r} has the same answer twice")

    @property
    def answers(self) -> list[tuple[str, str]]:
        """All answers with their feedback, in the order in which they are shown."""
        return sorted([self.right, *self.wrong], key=lambda pair: hashlib.sha256(pair[0].encode()).digest())

    def feedback(self, answer: str) -> tuple[bool, str]:
        """Whether `answer` is right, and what to say."""
        return answer == self.right[0], dict(self.answers)[answer]


class QuestionView(w.VBox):
    """One question: a choice by mouse or arrow keys, feedback at once."""

    def __init__(self, question: Question, number: int):
        self.question = question
        title = w.HTML(f"<b>{number}. {html.escape(question.text)}</b>")
        self.choice = w.RadioButtons(
            options=[text for text, _ in question.answers], value=None, layout=w.Layout(width="100%")
        )
        self.reply = w.HTML('<p role="status"></p>')
        super().__init__([title, self.choice, self.reply], layout=w.Layout(margin="0 0 1em 0"))
        for name, part in (("question", self), ("reply", self.reply)):
            part.add_class(f"refquant-{name}")  # how tests find them
        self.choice.observe(self._chosen, "value")

    def _chosen(self, change):
        right, text = self.question.feedback(change["new"])
        mark, word, colour = ("✓", "Right.", "#009E73") if right else ("✗", "Not quite.", "#D55E00")
        self.reply.value = (
            f'<p role="status" style="border-left:4px solid {colour};padding-left:.6em;line-height:1.4">'
            f"{mark} <b>{word}</b> {html.escape(text)}</p>"
        )


class Quiz(w.VBox):
    """Questions one below the other; as text where widgets do not run."""

    def __init__(self, questions: tuple[Question, ...]):
        self.questions = questions
        super().__init__([QuestionView(question, i) for i, question in enumerate(questions, 1)])

    def _repr_mimebundle_(self, **options):
        return {**super()._repr_mimebundle_(**options), "text/html": as_html(self.questions)}


def quiz(*questions: Question) -> Quiz:
    """Show the questions as a quiz; raise `BadInput` for one without feedback to each answer (see `Question`)."""
    return Quiz(questions)


def as_html(questions: tuple[Question, ...]) -> str:
    """The questions as text, each with its answers and feedback folded."""
    parts = []
    for number, question in enumerate(questions, 1):
        listed = "".join(f"<li>{html.escape(text)}</li>" for text, _ in question.answers)
        replies = "".join(
            f"<li>{'✓' if text == question.right[0] else '✗'} {html.escape(text)}<br><em>{html.escape(reply)}</em></li>"
            for text, reply in question.answers
        )
        parts.append(
            f"<p><b>{number}. {html.escape(question.text)}</b></p><ul>{listed}</ul>"
            f"<details><summary>Answers</summary><ul>{replies}</ul></details>"
        )
    return "".join(parts)
