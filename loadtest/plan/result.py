"""A plan as it is told and kept: the answer, what was asked, and what is assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from loadtest.plan import words
from loadtest.plan.profile import HsmProfile
from loadtest.plan.search import Plan
from loadtest.plan.settings import PlanSettings


@dataclass(frozen=True, slots=True)
class PlanResult:
    """`key` is the type of the certificate's key; `answer`, `warnings` and `assumptions` are sentences."""

    answer: str
    question: PlanSettings
    hsm: HsmProfile
    key: str
    plan: Plan
    warnings: list[str]
    assumptions: list[str]

    @classmethod
    def of(cls, plan: Plan, question: PlanSettings, hsm: HsmProfile, key: str) -> Self:
        """With what there is to say of a plan."""
        return cls(
            answer=words.answer(plan, question, hsm, key),
            question=question,
            hsm=hsm,
            key=key,
            plan=plan,
            warnings=list(words.warnings(plan, question, hsm, key)),
            assumptions=list(words.assumptions(hsm)),
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "answer": self.answer,
            "question": self.question.model_dump(mode="json"),
            "hsm": self.hsm.model_dump(mode="json"),
            "key": self.key,
            "plan": asdict(self.plan),
            "warnings": self.warnings,
            "assumptions": self.assumptions,
        }
