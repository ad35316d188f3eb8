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


def test_what_a_remote_tokenizer_asks(server: Server, llm: LLM) -> None:
    """lm-eval looks up the id of a token that /tokenizer_info names by tokenizing its spelling."""
    with server.client() as client:
        info = client.get("/tokenizer_info").json()
        asked = {"prompt": info["eos_token"], "add_special_tokens": False}
        assert client.post("/tokenize", json=asked).json()["tokens"] == [llm.tokenizer.eos]
        assert client.post("/detokenize", json={"tokens": [llm.tokenizer.eos]}).json() == {
            "prompt": info["eos_token"]
        }
        parsed = client.post("/tokenize", json={"prompt": f"a{info['eos_token']}", "parse_special": True})
        assert parsed.json()["tokens"][-1] == llm.tokenizer.eos
    assert info["model_max_length"] == 2048 and info["chat_template"] == llm.template.source
    assert info["bos_token"] == info["pad_token"] == "<|endoftext|>" and info["unk_token"] is None
