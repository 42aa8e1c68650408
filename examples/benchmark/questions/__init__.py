"""The questions, one file each."""

from __future__ import annotations

from benchmark.question import Question
from benchmark.questions import animals, cells, diffusion, digits, smoke

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        smoke.QUESTION,
        diffusion.QUESTION,
        digits.QUESTION,
        digits.MNIST,
        animals.QUESTION,
        cells.QUESTION,
    )
}
