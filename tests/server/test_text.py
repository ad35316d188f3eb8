"""/tokenize and /detokenize, as lm-eval asks them."""

from __future__ import annotations

from headrace import LLM
from tests.server.running import Server


def test_there_and_back(server: Server, llm: LLM) -> None:
    text = "def add(a, b):\n    return a + b  # naïve ✓\n"
    with server.client() as client:
        answer = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
        assert answer["tokens"] == llm.tokenizer.encode(text, add_special=False)
        assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 2048
        assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}


def test_messages(server: Server, llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello"}]
    _, ids = llm.template.encode(llm.tokenizer, messages)
    with server.client() as client:
        answer = client.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()
    assert answer["tokens"] == ids and len(answer["token_strs"]) == len(ids)


def test_special_tokens_in_a_text_are_text(server: Server, llm: LLM) -> None:
    command = sorted(llm.tokenizer.commands)[0]
    with server.client() as client:
        ids = client.post("/tokenize", json={"prompt": f"a{command}b"}).json()["tokens"]
    assert llm.tokenizer.id_of(command) not in ids[1:]


def test_both_or_neither(server: Server) -> None:
    with server.client() as client:
        assert client.post("/tokenize", json={}).status_code == 400
        assert client.post("/tokenize", json={"prompt": "a", "messages": []}).status_code == 400
        assert client.post("/detokenize", json={"tokens": [1 << 40]}).status_code == 400
