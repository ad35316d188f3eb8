"""Eight partial answers, drawn anew after each step by a scorer that knows what a right line looks like."""

from headrace import LLM
from headrace.box.tasks import chain_prefix, check_chain, examples
from headrace.search.rounds import answers
from headrace.search.session import Session
from headrace.search.strategies import SLOT

[example] = examples("chain", 1, seed=3)


def score(texts):
    return [0.95 if chain_prefix(example, text)[1] else 0.05 for text in texts]


with LLM("tiny") as llm:
    for spec in ("best_of_n:n=8", "particle:n=8", "a_star:k=3"):
        session = Session(llm, example.prompt, stop=example.stop, temperature=1.0, budget_tokens=8 * 64)
        [answer] = answers(llm, [SLOT.make(spec).search(session, score, extract=None)])
        verdict = "right" if check_chain(example, answer.text) else "wrong"
        print(f"{spec}: {verdict}, {session.cost.new_tokens} tokens generated")
